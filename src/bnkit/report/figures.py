"""The three figures of a comparison: accuracy, loss, and the steps to the target."""

from collections.abc import Iterable, Mapping

from bnkit.experiments.results import SIDES
from bnkit.experiments.summary import Comparison
from bnkit.report.curves import Curves, Measure, curves_of
from bnkit.report.dots import dots, track
from bnkit.report.figure import Figure, Group, Panel
from bnkit.report.frames import Frame, accuracy_frame, loss_frame
from bnkit.report.panels import ROOM, hover, panel
from bnkit.report.words import heading, number, several, share

Setting = tuple[float, str]  # learning rate, activation


def figures(comparison: Comparison) -> tuple[Figure, ...]:
    """Return the figures of accuracy, of loss, and of the steps to the target."""
    return accuracy_figure(comparison), loss_figure(comparison), steps_figure(comparison)


def accuracy_figure(comparison: Comparison) -> Figure:
    """Return the curves of held-out accuracy, with a thin rule for the target."""
    curves = _curves(comparison, lambda curve: [100 * value for value in curve.accuracy])
    frame = accuracy_frame(curves.values(), 100 * comparison.target)
    return Figure(
        name="accuracy",
        title="Held-out accuracy while training: plain against batch norm (BN)",
        caption=(*_how_to_read(comparison), f"Thin rule: the target, {share(comparison.target)}."),
        groups=tuple(_groups("accuracy", comparison, curves, frame)),
        width=190,
        room=ROOM,
    )


def loss_figure(comparison: Comparison) -> Figure:
    """Return the curves of the training loss."""
    curves = _curves(comparison, lambda curve: curve.loss)
    frame = loss_frame(curves.values())
    return Figure(
        name="loss",
        title="Training loss: plain against batch norm (BN)",
        caption=(*_how_to_read(comparison), *_beyond(curves, frame)),
        groups=tuple(_groups("loss", comparison, curves, frame)),
        width=190,
        room=ROOM,
    )


def steps_figure(comparison: Comparison) -> Figure:
    """Return the steps to the target of every pair of runs."""
    whole = track(comparison)
    panels = tuple(
        Panel(
            name=f"steps-{n}",
            words=f"Steps to the target of each pair of runs{_with(activation)}.",
            drawing=dots(comparison, activation, whole, heading(activation)),
        )
        for n, activation in enumerate(comparison.activations)
    )
    return Figure(
        name="steps",
        title=f"Training steps to {share(comparison.target)} held-out accuracy",
        caption=(
            "Ring: plain. Dot: batch norm. A line joins the two runs of one seed.",
            "“never”: the run ended or failed without reaching the target.",
        ),
        groups=(Group("", panels),),
        width=330,
        room=70,
    )


def _how_to_read(comparison: Comparison) -> tuple[str, ...]:
    seeds = len(comparison.seeds)
    lines = "one run" if seeds == 1 else f"median of {seeds} seeds, band: lowest to highest"
    diverged = sum(trial.outcome == "diverged" for trial in comparison.trials)
    cross = (
        f"×: a run diverged there ({diverged} did); it counts with its last value from there on."
    )
    styles = "Dashed: plain. Solid: batch norm (BN)."
    return (f"{styles} Line: {lines}.", *([cross] if diverged else []))


def _beyond(curves: Mapping[Setting, Curves], frame: Frame) -> tuple[str, ...]:
    highest = [spread.highest for each in curves.values() for spread in each.everything]
    if max(highest, default=0) <= frame.high:
        return ()
    return (f"Losses above {frame.written(frame.high)} are drawn at the upper edge.",)


def _curves(comparison: Comparison, measure: Measure) -> dict[Setting, Curves]:
    return {
        (lr, activation): curves_of(
            {side: comparison.at(lr, activation, side) for side in SIDES}, measure
        )
        for activation in comparison.activations
        for lr in comparison.learning_rates
    }


def _groups(
    name: str, comparison: Comparison, curves: Mapping[Setting, Curves], frame: Frame
) -> Iterable[Group]:
    """A group for each activation, its panels by learning rate; for one rate, one group."""
    last_step = max((t.curve.steps[-1] for t in comparison.trials if t.curve.steps), default=1)

    def drawn(setting: Setting, title: str) -> Panel:
        return Panel(
            name=f"{name}-{list(curves).index(setting)}",
            words=_in_words(setting, curves[setting], frame),
            drawing=panel(curves[setting], frame, last_step, title),
            hovering=hover(frame),
        )

    if len(comparison.learning_rates) == 1 and len(comparison.activations) > 1:
        yield Group("", tuple(drawn(setting, setting[1]) for setting in curves))
        return
    for activation in comparison.activations:
        settings = [setting for setting in curves if setting[1] == activation]
        panels = tuple(drawn(each, f"learning rate {number(each[0])}") for each in settings)
        yield Group(heading(activation), panels)


def _in_words(setting: Setting, curves: Curves, frame: Frame) -> str:
    learning_rate, activation = setting
    ends = [
        f"{side} {frame.written(end.median) if (end := curves.end(side)) else 'nothing to show'}"
        for side in SIDES
    ]
    diverged = len(curves.divergences)
    crosses = f"; {several(diverged, 'run')} diverged" if diverged else ""
    return (
        f"{frame.label} against training step, learning rate {number(learning_rate)}"
        f"{_with(activation)}. At the end: {', '.join(ends)}{crosses}."
    )


def _with(activation: str) -> str:
    return f", {heading(activation)}" if heading(activation) else ""
