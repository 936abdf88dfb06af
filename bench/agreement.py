"""Do the contenders of a case compute the same? A speed-up over something else is no speed-up."""

from __future__ import annotations

from .case import Case, Contender, Results


def disagreements(case: Case, contender: Contender, ours: Results, theirs: Results) -> list[str]:
    """Results of `contender` that differ from the candidate's by more than the case allows, in words; all is well when empty."""
    names = set(ours) & set(theirs) if contender.agrees is None else contender.agrees
    if contender.agrees is None and not names:
        return [f"{contender.name} has no result of {', '.join(ours)}"]
    found = []
    for name in sorted(names):
        want, got = ours[name].double(), theirs[name].double()
        error = float((got - want).norm() / want.norm().clamp_min(1e-12))
        if want.shape != got.shape or not error <= case.tolerance:
            found.append(f"{case.name}: {name} of {contender.name} differs by {error:.3g} (relative), allowed {case.tolerance:g}")
    return found
