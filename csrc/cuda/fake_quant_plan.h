// From a tensor's view to its cut, and from a job to the code for its types.
#pragma once

#include "fake_quant_kernels.h"
#include "types.h"

namespace fastqat {

struct Plan {
  View view;
  Storage storage;
  bool by_columns;
  RowCut rows;  // one of the two is set, none for an empty tensor
  ColumnCut columns;
  int64_t repeats, run;  // partials lie as [blocks][repeats][channels][run]

  int64_t partials() const { return view.scales() * repeats * run; }
  int64_t vector() const { return vector_of(storage); }
  int64_t blocks() const { return by_columns ? columns.pieces : divide_up(rows.pieces * rows.lanes, kThreads); }
};

inline Plan make_plan(const View& view, Storage storage) {
  Plan plan{view, storage, by_column(view), {}, {}, 0, 1};
  if (view.numel() == 0) return plan;
  if (plan.by_columns) {
    plan.columns = cut_columns(view, plan.vector());
    plan.repeats = plan.columns.outer_chunks.d * plan.columns.merge;
    plan.run = view.inner;
  } else {
    plan.rows = cut_rows(view, plan.vector());
    plan.repeats = plan.rows.outer_chunks.d;
    plan.run = plan.rows.chunks.d;
  }
  return plan;
}

inline void get_cut(const Plan& plan, RowCut& cut) { cut = plan.rows; }
inline void get_cut(const Plan& plan, ColumnCut& cut) { cut = plan.columns; }

// What adds up the partials of a plan.
inline Partials finishing(const Plan& plan) {
  const int64_t terms = plan.repeats * plan.run;
  const int lanes = terms < 8 ? 1 : terms < 64 ? 8 : terms < 1024 ? 32 : kThreads;
  return {plan.view.scales(), plan.repeats, terms, Divider(std::max<int64_t>(1, plan.view.channels)), Divider(plan.run), lanes};
}

inline int64_t blocks_of(const Partials& cut) { return divide_up(cut.scales * cut.lanes, kThreads); }

inline bool needs_finish(const Job& job, const Plan& plan) {
  return !job.whole && plan.view.scales() > 0 && (job.grad_scale != nullptr || job.grad_zero_point != nullptr);
}

// `job` with how its data are accessed: 128 bits at a time where all data begin on such a boundary, and so do the blocks of columns.
inline Job with_access(Job job, const Plan& plan) {
  const bool blocks_on_boundary = !plan.by_columns || plan.view.blocks == 1 || plan.columns.size % plan.vector() == 0;
  job.aligned = blocks_on_boundary && on_boundary(job.x) && on_boundary(job.grad_y) && on_boundary(job.out);
  job.whole = plan.repeats * plan.run == 1;
  return job;
}

// body(element type, reciprocal, aligned) with what a job and its plan say, as types.
template <class Body>
void by_kind(const Job& job, const Plan& plan, const Body& body) {
  const auto with = [&](auto in) {
    by_flag(job.reciprocal, [&](auto reciprocal) { by_flag(job.aligned, [&](auto aligned) { body(in, reciprocal, aligned); }); });
  };
  by_storage(plan.storage, with);
}

// start(Type<Block>) with the blocks that work on a job of this kind.
template <template <class, bool, bool> class Map, class Start>
void with_map(const Job& job, const Plan& plan, const Start& start) {
  by_kind(job, plan, [&](auto in, auto reciprocal, auto aligned) {
    using M = Map<typename decltype(in)::type, reciprocal(), aligned()>;
    plan.by_columns ? start(Type<Columns<M>>{}) : start(Type<Rows<M>>{});
  });
}

template <class Start>
void with_backward(const Job& job, const Plan& plan, const Start& start) {
  by_kind(job, plan, [&](auto in, auto reciprocal, auto aligned) {
    by_flag(job.zero_point != nullptr, [&](auto zero_point) {
      using T = typename decltype(in)::type;
      if (plan.by_columns)
        start(Type<BackwardColumns<T, reciprocal(), aligned(), zero_point()>>{});
      else
        start(Type<BackwardRows<T, reciprocal(), aligned(), zero_point()>>{});
    });
  });
}

}  // namespace fastqat
