"""The interactive part of a notebook: sliders when a person runs it, one static figure in a batch run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from matplotlib.figure import Figure

from adcore.figures import show
from adcore.progress import interactive


def explore(draw: Callable[..., Figure], **controls: Any) -> None:
    """Show a figure with sliders and menus that redraw it.

    In a batch run, and where ipywidgets is not installed, show it once with the start values.

    draw      makes the figure from the controls' values
    controls  name -> list of choices (a menu starting at the first) or (low, high, step) (a slider starting in the middle)
    """
    start = {name: _first(control) for name, control in controls.items()}
    if not interactive():
        show(draw(**start))
        return
    try:
        import ipywidgets
        from IPython.display import display
    except ImportError:
        print("the sliders need ipywidgets: pip install 'adcore[notebooks]'")
        show(draw(**start))
        return

    def redraw(**values: Any) -> None:
        show(draw(**values))

    sliders = {name: _widget(ipywidgets, name, control, start[name]) for name, control in controls.items()}
    display(ipywidgets.VBox([ipywidgets.HBox(list(sliders.values())), ipywidgets.interactive_output(redraw, sliders)]))


def _first(control: Any) -> Any:
    if isinstance(control, list):
        return control[0]
    low, high, step = control
    return type(step)(low + step * round((high - low) / (2 * step)))


def _widget(ipywidgets: Any, name: str, control: Any, value: Any) -> Any:
    if isinstance(control, list):
        return ipywidgets.Dropdown(options=control, value=value, description=name)
    low, high, step = control
    kind = ipywidgets.IntSlider if isinstance(step, int) else ipywidgets.FloatSlider
    return kind(min=low, max=high, step=step, value=value, description=name, continuous_update=False)
