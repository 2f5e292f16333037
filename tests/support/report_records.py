"""Run records that the report tests share: of real runs on small models whose answer is known."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np

from support.command_line import clean, overflowing
from trt_helper.inputs.samples import load_samples
from trt_helper.onnx_model.graph import read_graph
from trt_helper.onnx_model.load import load
from trt_helper.report.record import located_json, write_record
from trt_helper.search.locate import locate
from trt_helper.values import Tolerance

ARGV = ["trt-helper", "locate", "model.onnx", "-i", "a b.npz"]


def located_record(folder: Path, proto, samples) -> Path:
    """Locate with the default tolerance on these samples, arrays for the input `x`; returns the record's path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(proto.SerializeToString())
    for index, array in enumerate(samples):
        np.savez(folder / f"{index}.npz", x=np.asarray(array, np.float32))
    graph = read_graph(load(folder / "model.onnx"))
    paths = [folder / f"{index}.npz" for index in range(len(samples))]
    found = locate(graph, load_samples(graph, paths), Tolerance())
    write_record(folder / "run.json", located_json(found), "locate", ARGV)
    return folder / "run.json"


def overflowing_record(folder: Path) -> Path:
    """Five samples, one of them held out: the squares of the first four pass 65504, those of the last do not."""
    return located_record(folder, overflowing(), [[[k, -k] * 4] for k in (300, 310, 320, 330, 10)])


def clean_record(folder: Path) -> Path:
    """FP16 computes this one well; one random sample."""
    return located_record(folder, clean(batch=1), [])


def long_record(path: Path, layers: int) -> dict:
    """The record in `path` as a network of many layers would have it: its layers over and over, with other names."""
    record = json.loads(path.read_text())
    usual = record["layers"]
    record["layers"] = []
    for index in range(layers):
        layer = copy.deepcopy(usual[index % len(usual)])
        layer |= {"name": f"/model/layers.{index // 10}/{layer['op']}_{index}", "pinned": index % 500 == 7}
        layer["accumulated"] |= {"max": 10.0 ** (index % 9 - 6), "spread": 20.0 + index % 7}
        record["layers"].append(layer)
    record["model"]["layers"] = layers
    return record
