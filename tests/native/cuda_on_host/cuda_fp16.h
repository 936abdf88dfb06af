// fp16 by the compiler's own type, rounded half to even.
#pragma once

struct __half {
  _Float16 value;
};
struct __half2 {
  __half x, y;
};

inline float __half2float(__half h) { return static_cast<float>(h.value); }
inline __half2 __floats2half2_rn(float a, float b) { return {{static_cast<_Float16>(a)}, {static_cast<_Float16>(b)}}; }
