"""A linear programme with some whole numbers, written row by row and solved by HiGHS."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

import highspy
import numpy as np

from prfaas.core.planning.scenario import PlanningError

#: Whole-number programmes are solved to this relative gap, below what a plan is read at.
MIP_GAP: Final = 1e-4

#: Rows of less than this are not enlarged any further.
_LEAST: Final = 1e-3


class LinearProgramme:
    """Columns (variables) and sparse rows (constraints); `terms` are (column, factor)."""

    def __init__(self) -> None:
        self._costs: list[float] = []
        self._limits: list[tuple[float, float]] = []
        self._whole: list[bool] = []
        self._starts = [0]
        self._indices: list[int] = []
        self._values: list[float] = []
        self._bounds: list[tuple[float, float]] = []

    def column(self, low: float, high: float, *, cost: float = 0.0, whole: bool = False) -> int:
        """A variable between two limits with its weight in the objective; returns its number."""
        self._costs.append(cost)
        self._limits.append((low, high))
        self._whole.append(whole)
        return len(self._costs) - 1

    def at_most(self, limit: float, terms: Iterable[tuple[int, float]]) -> None:
        """The sum of terms is at most `limit`. The row is measured in units of its greatest number, so that large and
        small stages are held to the same relative tolerance."""
        listed = list(terms)
        scale = max(_LEAST, limit, *(abs(value) for _, value in listed[1:]))
        self._row(-math.inf, limit / scale, ((index, value / scale) for index, value in listed))

    def equal(self, value: float, terms: Iterable[tuple[int, float]]) -> None:
        """The sum of terms is `value`."""
        self._row(value, value, terms)

    def _row(self, low: float, high: float, terms: Iterable[tuple[int, float]]) -> None:
        for index, value in terms:
            self._indices.append(index)
            self._values.append(value)
        self._starts.append(len(self._indices))
        self._bounds.append((low, high))

    def maximise(self) -> tuple[float, list[float]]:
        """The optimum and the values of the columns there. Raises PlanningError if HiGHS finds none."""
        model = highspy.HighsLp()
        model.num_col_, model.num_row_ = len(self._costs), len(self._bounds)
        model.sense_ = highspy.ObjSense.kMaximize
        model.col_cost_ = np.array(self._costs)
        model.col_lower_, model.col_upper_ = (np.array(side, dtype=float) for side in zip(*self._limits, strict=True))
        model.row_lower_, model.row_upper_ = (np.array(side, dtype=float) for side in zip(*self._bounds, strict=True))
        model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        model.a_matrix_.start_ = np.array(self._starts)
        model.a_matrix_.index_ = np.array(self._indices)
        model.a_matrix_.value_ = np.array(self._values)
        if any(self._whole):
            kinds = (highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger)
            model.integrality_ = [kinds[whole] for whole in self._whole]
        solver = highspy.Highs()  # type: ignore[no-untyped-call]
        # For so few rows, presolving takes longer than it saves, unless there are whole numbers.
        solver.setOptionValue("presolve", "choose" if any(self._whole) else "off")
        solver.setOptionValue("output_flag", False)
        solver.setOptionValue("threads", 1)
        solver.setOptionValue("random_seed", 0)
        solver.setOptionValue("mip_rel_gap", MIP_GAP)
        # Stages differ a thousandfold: of the smallest, too, no more is used than there is.
        solver.setOptionValue("primal_feasibility_tolerance", 1e-9)
        solver.passModel(model)
        solver.run()
        if solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            # Once more from nothing, as HiGHS would do it.
            solver.clearSolver()
            solver.setOptionValue("presolve", "choose")
            solver.setOptionValue("primal_feasibility_tolerance", 1e-7)
            solver.run()
        if solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            # Nothing at all is always feasible, and every rate is bounded by some instance.
            status = solver.modelStatusToString(solver.getModelStatus())
            size = f"{len(self._costs)} rates and {len(self._bounds)} limits"
            raise PlanningError(
                f"HiGHS found no best plan of {size} and says: {status}; this is a defect of the planner or of HiGHS,"
                " please report it with the deployment file"
            )
        return solver.getObjectiveValue(), [float(value) for value in solver.getSolution().col_value]
