"""Figures of the notebooks and the report: one style, a common color scale for compared values, readable in gray."""

from adcore.figures.attention import activation_pairs, boxed, heated
from adcore.figures.charts import (
    bar_panels,
    grouped_bars,
    intervals,
    labeled_points,
    line_chart,
    line_panels,
    probability_histograms,
    receptive_fields,
    score_histograms,
    strips,
    visible_keys,
)
from adcore.figures.colors import color_clouds, color_transport
from adcore.figures.fields import arrows, vector_fields
from adcore.figures.localization import best_and_worst, localizations
from adcore.figures.methods import accuracy_and_cost, method_intervals
from adcore.figures.pictures import (
    contact_sheet,
    framed,
    heat_maps,
    largest_defects,
    overlay,
    reconstructions,
    side_by_side,
    stored_maps,
)
from adcore.figures.style import COLORS, HATCHES, HEAT, LINES, MARKERS, bare, outline, record, show, use_style
from adcore.figures.views import cell_centers, paired_views
from adcore.figures.wiring import wiring_diagrams

__all__ = ["COLORS", "HATCHES", "HEAT", "LINES", "MARKERS", "accuracy_and_cost", "activation_pairs", "arrows", "bar_panels",
           "bare", "best_and_worst", "boxed", "cell_centers", "color_clouds", "color_transport", "contact_sheet", "framed",
           "grouped_bars", "heat_maps", "heated", "intervals", "labeled_points", "largest_defects", "line_chart",
           "line_panels", "localizations", "method_intervals", "outline", "overlay", "paired_views",
           "probability_histograms", "receptive_fields", "reconstructions", "record", "score_histograms", "show",
           "side_by_side", "stored_maps", "strips", "use_style", "vector_fields", "visible_keys", "wiring_diagrams"]
