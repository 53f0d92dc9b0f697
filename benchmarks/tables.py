"""Results, as read from results.json, in tables: for the terminal and for docs/speed.md."""

from __future__ import annotations

import statistics

from benchmarks.layout import Record, Table, bytes_text, seconds_text, shape_text, verdict
from benchmarks.use_tables import use_tables

_FASTER_THAN_OTHERS = 5.0  # target of the median over cells
_ORDER_TOLERANCE = 1.1  # sorted and skewed labels against shuffled ones
_SCALING_TARGET = 0.9
_FULL_TARGET = 1.15


def tables(results: Record) -> list[Table]:
    """Every table for which there are results."""
    cells = results["cells"]
    made = []
    if cells:
        made.append(floor_table(cells))
    if any(cell["single"] for cell in cells):
        made.append(scaling_table(cells))
    if any(cell["peers"] for cell in cells):
        made += [peers_table(cells, dtype) for dtype in _dtypes_with_peers(cells)]
    if results["small_updates"]:
        made.append(small_table(results["small_updates"]))
    if results["full_updates"]:
        made.append(full_table(results["full_updates"]))
    if results["metric_times"]:
        made.append(metrics_table(results["metric_times"]))
    return made + use_tables(results)


def markdown(results: Record) -> str:
    """Return the tables of docs/speed.md, under where and how they were measured."""
    machine, versions = results["machine"], results["versions"]
    parts = [
        f"`{results['command']}` on {machine['cpu']}, {machine['cores']} cores, "
        f"{results['threads']} threads, {versions['core']['simd']}, "
        f"torch {versions['core']['torch']}, commit {str(versions['commit'])[:12]}:"
    ]
    if results["cells"]:
        parts.append(_cells_markdown(results["cells"]))
    for table in use_tables(results):
        parts += [f"{table.title}:", table.markdown()]
    return "\n\n".join(parts)


def _cells_markdown(cells: list[Record]) -> str:
    """Shuffled labels, all of it in one table."""
    in_order = {
        _key(cell): f"{cell['timing']['ratio']:.2f}"
        for cell in cells
        if cell["labelling"] == "sorted"
    }
    rows = []
    for cell in cells:
        if cell["labelling"] != "shuffled":
            continue
        timing = cell["timing"]
        fastest, factor = fastest_peer(cell)
        rows.append(
            (
                f"{shape_text(cell)} {cell['dtype']}",
                seconds_text(timing["ours"]),
                f"{cell['feature_bytes'] / timing['ours'] / 1e9:.1f}",
                f"{timing['ratio']:.2f}",
                f"{cell['target']:.2f}",
                in_order.get(_key(cell), "-"),
                f"{cell['in_cache'] / timing['floor']:.2f}",
                "-" if factor is None else f"{factor:.1f}",
                fastest or "-",
            )
        )
    header = (
        *("N x d, K", "update", "GB/s", "x floor", "target", "sorted labels", "in cache"),
        *("fastest other / ours", "which"),
    )
    return Table("", header, rows, (_peers_note(cells),)).markdown()


def floor_table(cells: list[Record]) -> Table:
    """(a) Update against the floor, per shape, dtype and labelling."""
    shuffled = {
        _key(cell): cell["timing"]["ratio"] for cell in cells if cell["labelling"] == "shuffled"
    }
    rows = []
    for cell in cells:
        timing, base = cell["timing"], shuffled.get(_key(cell))
        if cell["labelling"] == "shuffled":
            passed, wanted = timing["ratio"] <= cell["target"], f"{cell['target']:.2f}"
        else:
            limit = None if base is None else base * _ORDER_TOLERANCE
            passed = limit is None or timing["ratio"] <= limit
            wanted = "-" if limit is None else f"{limit:.2f}"
        rows.append(
            (
                shape_text(cell),
                cell["dtype"],
                cell["labelling"],
                seconds_text(timing["floor"]),
                seconds_text(timing["ours"]),
                f"{cell['feature_bytes'] / timing['floor'] / 1e9:.1f}",
                f"{cell['feature_bytes'] / timing['ours'] / 1e9:.1f}",
                f"{timing['ratio']:.2f}",
                wanted,
                verdict(passed) if wanted != "-" else "-",
            )
        )
    return Table(
        "Update against the floor (one read of the features, one update of the K x d means)",
        (
            "N x d, K",
            "dtype",
            "labels",
            "floor",
            "update",
            "floor GB/s",
            "GB/s",
            "x floor",
            "target",
            "",
        ),
        rows,
        (
            "Medians; x floor is the median over turns. Sorted and skewed labels: target is 1.1 x "
            "shuffled.",
            "Matrices smaller than two last-level caches are timed with the cache emptied before "
            "each call.",
        ),
    )


def scaling_table(cells: list[Record]) -> Table:
    """(b) What threads gain, against what they gain the floor."""
    rows = []
    for cell in cells:
        if cell["single"] is None:
            continue
        timing, single = cell["timing"], cell["single"]
        ours, floor = single["ours"] / timing["ours"], single["floor"] / timing["floor"]
        rows.append(
            (
                shape_text(cell),
                cell["dtype"],
                f"{single['ratio']:.2f}",
                f"{floor:.2f}",
                f"{ours:.2f}",
                f"{ours / floor:.2f}",
                verdict(ours >= _SCALING_TARGET * floor),
            )
        )
    return Table(
        "Gain of all threads over one (target: 0.9 of the floor's gain)",
        ("N x d, K", "dtype", "x floor, 1 thread", "floor gains", "update gains", "share", ""),
        rows,
    )


def peers_table(cells: list[Record], dtype: str) -> Table:
    """(c) Time of every other way over ours, one row a cell."""
    chosen = [cell for cell in cells if cell["peers"] and cell["dtype"] == dtype]
    names = [peer["name"] for peer in chosen[0]["peers"]]
    rows = []
    for cell in chosen:
        ours = cell["timing"]["ours"]
        _, factor = fastest_peer(cell)
        found = [_peer_cell(peer, ours) for peer in cell["peers"]]
        passed = factor is None or factor > 1.0
        fastest = "-" if factor is None else f"{factor:.1f}"
        rows.append((shape_text(cell), *found, fastest, verdict(passed)))
    return Table(
        f"Time of others over ours, {dtype}, shuffled labels",
        ("N x d, K", *names, "fastest", ""),
        rows,
        (
            _peers_note(cells),
            "'> x': stopped at the time budget, a lower bound from part of the rows; 'x GiB': not "
            "run, would need that much memory.",
        ),
    )


def small_table(records: list[Record]) -> Table:
    """(d) One Python call of a training loop."""
    rows = [
        (
            shape_text(record),
            f"{record['ours'] * 1e6:.1f} us",
            f"{record['floor'] * 1e6:.1f} us",
            f"{record['target'] * 1e6:.1f} us",
            verdict(record["ours"] <= record["target"]),
        )
        for record in records
    ]
    return Table(
        "One update of a training batch, the whole Python call",
        ("N x d, K", "update", "floor", "20 us + 1.5 x floor", ""),
        rows,
    )


def full_table(records: list[Record]) -> Table:
    """(e) The d x d scatter."""
    rows = [
        (
            shape_text(record),
            seconds_text(record["ours"]),
            seconds_text(record["numpy_product"]),
            seconds_text(record["torch_product"]),
            f"{record['ratio']:.2f}",
            bytes_text(record["extra_bytes"]),
            bytes_text(record["feature_bytes"]),
            verdict(record["ratio"] <= _FULL_TARGET),
        )
        for record in records
    ]
    return Table(
        "Update with full=True against the d x d product alone (target: 1.15)",
        ("N x d, K", "update", "X.T @ X", "torch.mm", "ratio", "extra memory", "features", ""),
        rows,
    )


def metrics_table(records: list[Record]) -> Table:
    """(f) Metrics of large states."""
    rows = [
        (
            record["metric"],
            f"{record['num_classes']}",
            f"{record['num_features']}",
            seconds_text(record["ours"]),
            record["yardstick"],
            seconds_text(record["yardstick_seconds"]),
            f"{record['ours'] / record['yardstick_seconds']:.2f}",
            bytes_text(record["extra_bytes"]),
        )
        for record in records
    ]
    header = ("metric", "K", "d", "time", "against", "its time", "ratio", "extra memory")
    return Table("Metrics of a large state", header, rows)


def fastest_peer(cell: Record) -> tuple[str | None, float | None]:
    """Name of the fastest competitor that finished, and its time over ours."""
    finished = [peer for peer in cell["peers"] if peer["status"] == "ok"]
    if not finished:
        return None, None
    fastest = min(finished, key=lambda peer: peer["seconds"])
    return fastest["name"], fastest["seconds"] / cell["timing"]["ours"]


def _peers_note(cells: list[Record]) -> str:
    factors = [factor for cell in cells if (factor := fastest_peer(cell)[1]) is not None]
    if not factors:
        return "No other library was timed."
    median = statistics.median(factors)
    passed = verdict(median >= _FASTER_THAN_OTHERS)
    return (
        f"Fastest of the others over ours, median over {len(factors)} cells of both dtypes: "
        f"{median:.1f} (target {_FASTER_THAN_OTHERS:.0f}: {passed}), least {min(factors):.1f}."
    )


def _peer_cell(peer: Record, ours: float) -> str:
    if peer["status"] == "ok":
        return f"{peer['seconds'] / ours:.1f}"
    if peer["status"] == "over budget":
        return f"> {peer['seconds'] / ours:.0f}"
    if peer["status"] == "memory":
        return f"{peer['bytes'] / 2**30:.0f} GiB"
    return {"not installed": "not installed", "does not apply": "-"}[peer["status"]]


def _dtypes_with_peers(cells: list[Record]) -> list[str]:
    return list(dict.fromkeys(cell["dtype"] for cell in cells if cell["peers"]))


def _key(cell: Record) -> tuple[str, str]:
    return shape_text(cell), cell["dtype"]
