"""`trt-helper doctor`."""

from __future__ import annotations

from dataclasses import asdict

from trt_helper.cli import options


def run(model: options.OptionalModel = None, as_json: options.AsJson = False) -> None:
    """Say what this machine can build, run and emulate, and how to get more; with a model, what its builder refuses."""
    from trt_helper import __version__
    from trt_helper.builder.refusals import refusals
    from trt_helper.cli import common
    from trt_helper.cli.console import show, show_json
    from trt_helper.cli.tables import abilities
    from trt_helper.cli.tables import refusals as refused
    from trt_helper.system import machine

    found = machine.abilities()
    refusing = refusals(common.open_graph(model)) if model else ()
    if as_json:
        show_json(
            {
                "schema": 1,
                "trt-helper": __version__,
                "platform": machine.platform_line(),
                "abilities": [{"what": a.what, "here": a.here, "with": a.with_, "more": a.more} for a in found],
                **({"refused": [asdict(one) for one in refusing]} if model else {}),
            }
        )
        return
    show(f"trt-helper {__version__}, {machine.platform_line()}", "", abilities(found))
    if model:
        show("", refused(refusing))
