"""The interactive part of a notebook: menus and sliders when a person runs it, one static figure in a batch run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from matplotlib.figure import Figure

from adcore.figures.style import picture, show
from adcore.progress import interactive

# Stands before the controls. JupyterLab saves a reference to the controls and not the controls: in a notebook that is opened
# again, "Error displaying widget" would be in their place. The style hides it, or hides the sentence where the controls work.
NOTE = """<style>
.jp-OutputArea-child:has(.adcore-controls):has(+ .jp-OutputArea-child .jupyter-widgets > *) { display: none }
.jp-OutputArea-child:has(.adcore-controls) + .jp-OutputArea-child:not(:has(.jupyter-widgets > *)) { display: none }
</style><em class="adcore-controls">Run this notebook to change the figure by its controls: NAMES.</em>"""


def explore(draw: Callable[..., Figure], **controls: Any) -> None:
    """Show a figure, and above it the menus and sliders that redraw it.

    The figure is an ordinary picture, which a saved notebook keeps. In a batch run, and where ipywidgets is not installed,
    it is shown without the controls, with their start values.

    draw      makes the figure from the controls' values
    controls  name -> list of choices (a menu starting at the first) or (low, high, step) (a slider starting in the middle)
    """
    start = {name: _first(control) for name, control in controls.items()}
    if not interactive():
        show(draw(**start))
        return
    try:
        import ipywidgets
        from IPython.display import DisplayHandle, display
    except ImportError:
        print("the sliders need ipywidgets: pip install 'adcore[notebooks]'")
        show(draw(**start))
        return

    widgets = {name: _widget(ipywidgets, name, control, start[name]) for name, control in controls.items()}
    place = DisplayHandle()

    def redraw(_: Any) -> None:
        place.update(picture(draw(**{name: widget.value for name, widget in widgets.items()})))

    box = ipywidgets.HBox(list(widgets.values()))
    display({"text/html": NOTE.replace("NAMES", ", ".join(controls)), "text/plain": ""}, raw=True)
    display({**box._repr_mimebundle_(), "text/plain": ""}, raw=True)
    place.display(picture(draw(**start)))
    for widget in widgets.values():
        widget.observe(redraw, "value")


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
