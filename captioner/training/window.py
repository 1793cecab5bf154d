"""What the log says of the steps since its last line: means, not the values of a single batch."""

from __future__ import annotations


class AverageMeter:
    """Sums of named values over the steps since they were last asked for."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.steps = 0

    def add(self, **values: float) -> None:
        """Count one step."""
        self.steps += 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        """The means of the steps so far; begins anew."""
        means = {name: round(total / self.steps, 5) for name, total in self.sums.items()}
        self.sums, self.steps = {}, 0
        return means

    def state_dict(self) -> dict[str, int | dict[str, float]]:
        """For exact resume."""
        return {"steps": self.steps, "sums": dict(self.sums)}

    def load_state_dict(self, state: dict[str, int | dict[str, float]]) -> None:
        """Restore what :meth:`state_dict` gave."""
        steps, sums = state["steps"], state["sums"]
        assert isinstance(steps, int)
        assert isinstance(sums, dict)
        self.steps, self.sums = steps, dict(sums)
