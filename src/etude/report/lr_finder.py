"""The page of a learning-rate range test: the curve and the suggestion."""

from typing import Any

import numpy as np

from etude.report import charts
from etude.report.charts import Series, number
from etude.report.parts import e, section, shell


def render(found: dict[str, Any]) -> str:
    """`engine.lr_finder.Found`, as plain values -> the page."""
    rates = np.array(found["rates"], float)
    # the explosion at the end would press all else against the axis
    high = 1.5 * max(found["smoothed"][: int(0.9 * len(rates)) + 1])
    curves = {"mean": found["smoothed"], "loss": found["losses"]}
    series = [Series(name, rates, np.minimum(np.array(curve, float), high)) for name, curve in curves.items()]
    chart = charts.lines(
        "Loss at growing rates", series, x="rate", log_x=True, kept=found["suggestion"], kept_name="suggested"
    )
    rate = number(found["suggestion"])
    text = (
        f"The loss falls fastest at a rate of {rate}, a good constant rate. Schedules with a warm-up may go up to "
        f"where it is lowest, {number(found['largest'])}."
        + (" It broke at the last rate shown." if found["broke"] else "")
    )
    command = f"etude train {found['recipe']} {found['flag']} {found['suggestion']:g}"
    body = f'<div class="grid2">{chart}</div>' + f"<pre><code>{e(command)}</code></pre>" * bool(found["flag"])
    header = (
        '<header><p class="over">etude · learning-rate range test</p>'
        f'<div class="title"><h1>{e(found["recipe"])}</h1></div></header>'
    )
    return shell(f"{found['recipe']} learning rate", header, section("curve", f"Suggested: {rate}", body, text))
