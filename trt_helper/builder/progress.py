"""Convert TensorRT's nested build phases into one fraction."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class _Phase:
    steps: int
    parent: str | None
    done: int = 0
    running: dict[str, float] = field(default_factory=dict)  # sub-phase -> fraction done

    def fraction(self) -> float:
        return min(1.0, (self.done + min(1.0, max(self.running.values(), default=0.0))) / max(1, self.steps))


class Progress:
    """Follows the calls of IProgressMonitor; `fraction` is in [0, 1] and never falls.

    A phase counts as one step of its parent. That is only roughly true: TensorRT states how many steps a phase has, not
    how long they take.
    """

    def __init__(self) -> None:
        self._open: dict[str, _Phase] = {}
        self.fraction = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """Open a phase with this number of steps."""
        self._open[name] = _Phase(steps, parent)

    def step(self, name: str, step: int) -> None:
        """Record that step number `step`, counted from 0, has ended."""
        phase = self._open.get(name)
        if phase:
            phase.done = max(phase.done, step + 1)
            phase.running.clear()
            self._pass_up(name)

    def finish(self, name: str) -> None:
        """Close a phase and count all its steps as done."""
        phase = self._open.get(name)
        if phase:
            phase.done = phase.steps
            self._pass_up(name)
            del self._open[name]

    def _pass_up(self, name: str) -> None:
        phase = self._open[name]
        parent = self._open.get(phase.parent) if phase.parent is not None else None
        if parent is not None and phase.parent is not None:
            parent.running[name] = phase.fraction()
            self._pass_up(phase.parent)
        elif phase.parent is None:
            self.fraction = max(self.fraction, phase.fraction())
