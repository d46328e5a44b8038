"""The record of a training run: log.csv, one row an interval, and loss.png drawn from it."""

import csv
from pathlib import Path

from frameattn._optional import require

COLUMNS = ("step", "loss", "mse", "vb", "learning_rate", "gradient_norm", "seconds")


class Log:
    """Appends to log.csv. Rows behind ``step``, left by a run that was killed after its last save, are dropped."""

    def __init__(self, folder: Path, step: int):
        self.path = folder / "log.csv"
        self.plot_path = folder / "loss.png"
        rows = [row for row in self.rows() if int(row["step"]) <= step] if self.path.exists() else []
        with self.path.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)

    def rows(self) -> list[dict[str, str]]:
        with self.path.open(newline="") as file:
            return [row for row in csv.DictReader(file) if row["seconds"]]  # a torn last line has none

    def append(self, **values: float | int | str) -> None:
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, COLUMNS).writerow(
                {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in values.items()}
            )

    def plot(self) -> None:
        rows = self.rows()
        require("matplotlib")
        from matplotlib.figure import Figure  # not pyplot: no window system, no global state

        figure = Figure(figsize=(8, 4), layout="constrained")
        axes = figure.subplots()
        steps = [int(row["step"]) for row in rows]
        for name in ("mse", "vb"):
            values = [float(row[name]) for row in rows if row[name]]
            if values:
                axes.plot(steps[-len(values) :], values, label=name, linewidth=1)
        axes.set(xlabel="step", ylabel="loss", yscale="log")
        axes.grid(alpha=0.3)
        if rows:
            axes.legend()
        figure.savefig(self.plot_path, dpi=120)
