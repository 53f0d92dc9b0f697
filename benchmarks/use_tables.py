"""Tables of deeprep in use: losses, files, probes of whole models, processes."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.layout import Record, Table, bytes_text, seconds_text, shape_text, verdict

_FILE_TARGET = 0.8  # of the speed of reading the files
_PROBE_TARGET = 1.1  # times the bare forward
_MONITOR_TARGET = 1.02  # times the bare step
_STATES_TARGET = 2.0  # extra memory over that of all states
_FLOAT64_TARGET, _FLOAT32_TARGET = 1e-12, 1e-6


def use_tables(results: Record) -> list[Table]:
    """Every table for which there are results; older ones have none of them."""
    makers = {
        "loss_times": loss_table,
        "file_speeds": file_table,
        "probe_overheads": probe_table,
        "monitor_overheads": monitor_table,
        "process_scalings": process_table,
        "reduce_times": reduce_table,
    }
    return [make(results[key]) for key, make in makers.items() if results.get(key)]


def loss_table(records: Sequence[Record]) -> Table:
    """(k) Losses of a training batch."""
    rows = [
        (
            f"{shape_text(record)} {record['dtype']}",
            seconds_text(record["ours"]),
            seconds_text(record["moments"]),
            seconds_text(record["reads"]),
            f"{record['over_reads']:.2f}",
            seconds_text(record["one_hot"]),
            f"{record['gain']:.1f}",
        )
        for record in records
    ]
    return Table(
        "Forward + backward of a loss over a training batch",
        (
            *("N x d, K", "compression", "class_moments", "two reads", "x reads"),
            *("one-hot products", "one-hot / ours"),
        ),
        rows,
        (
            "Two reads of the features and of the K x d means are what both passes of "
            "class_moments cannot undercut; the backward also writes the gradient, N x d. One-hot "
            "products: autograd through labels as a matrix, in the dtype of the features.",
        ),
    )


def file_table(records: Sequence[Record]) -> Table:
    """(g) Files against reading them."""
    rows = [
        (
            f"{shape_text(record)} {record['dtype']}",
            f"{record['num_files']:,}",
            seconds_text(record["ours"]),
            f"{record['file_bytes'] / record['ours'] / 1e9:.1f}",
            f"{record['of_one_reader']:.2f}",
            f"{record['of_readers']:.2f}",
            verdict(record["of_readers"] >= _FILE_TARGET),
            f"{record['of_sum']:.2f}",
            f"{record['of_memory']:.2f}",
            bytes_text(record["extra_bytes"]),
        )
        for record in records
    ]
    return Table(
        "Features on disk, their pages cached: speed over that of reading the files",
        (
            *("N x d, K", "files", "stats", "GB/s", "one reader", "all readers"),
            *(f">= {_FILE_TARGET}", "sum", "in memory", "resident"),
        ),
        rows,
        (
            "Over the speed at which one thread, and as many as the update has, read the files "
            "into a buffer; of torch.sum of the mapped files; of one update with the features in "
            "memory.",
            "Resident: growth of the process at its peak.",
        ),
    )


def probe_table(records: Sequence[Record]) -> Table:
    """(h) `analyze` against the bare forward."""
    rows = []
    for record in records:
        states = record["state_bytes"]
        passed = record["default"] <= _PROBE_TARGET
        rows.append(
            (
                f"{record['model']}, {record['reduce']}",
                f"{record['num_layers']}",
                seconds_text(record["bare"]),
                f"{record['default']:.3f}",
                "{:.2f} - {:.2f}".format(*record["default_quartiles"]),
                verdict(passed),
                f"{record['full']:.2f}",
                f"{record['accuracy']:.2f}",
                f"{states / 2**20:.2f} MiB",
                _over(record["extra_bytes"], states),
                _over(record["extra_bytes_8x"], states),
                _memory_verdict(record),
            )
        )
    return Table(
        f"analyze over the bare forward (target: {_PROBE_TARGET}) and its memory over that of all "
        f"states (target: {_STATES_TARGET:.0f})",
        (
            *(
                "model, reduce",
                "layers",
                "bare",
                "analyze",
                "quartiles",
                "",
                'full="auto"',
                "accuracy=True",
            ),
            *("states", "memory", "8 x data", ""),
        ),
        rows,
        (
            f"{records[0]['num_samples']} images or texts in batches of 64; times are medians over "
            "turns, memory medians over fresh processes. accuracy=True runs the model twice.",
        ),
    )


def monitor_table(records: Sequence[Record]) -> Table:
    """(m) Monitor against the bare training step."""
    rows = [
        (
            f"{record['model']}, {record['reduce']}, {record['device']}",
            f"{record['batch']}",
            seconds_text(record["bare"]),
            f"{record['watched']:.3f}",
            "{:.3f} - {:.3f}".format(*record["quartiles"]),
            verdict(record["watched"] <= _MONITOR_TARGET),
            f"{record['idle']:.3f}",
        )
        for record in records
    ]
    return Table(
        f"Monitor over the bare training step, every = 10 (target: {_MONITOR_TARGET})",
        ("model, reduce, device", "batch", "bare step", "Monitor", "quartiles", "", "idle"),
        rows,
        (
            "One step of ten is measured and reported; idle: asked before every step, measures "
            "none. Turns of ten steps; medians of ratios turn by turn.",
        ),
    )


def process_table(records: Sequence[Record]) -> Table:
    """(i) One data set on several processes."""
    rows = []
    for record in records:
        exact = (
            max(record["means_float64"], record["sumsq_float64"]) <= _FLOAT64_TARGET
            and max(record["means_float32"], record["sumsq_float32"]) <= _FLOAT32_TARGET
        )
        rows.append(
            (
                f"{record['num_processes']}{_oversubscribed(record)}",
                seconds_text(record["update"]),
                f"{records[0]['update'] / record['update']:.2f}",
                seconds_text(record["all_reduce"]),
                *(
                    f"{record[name]:.0e}"
                    for name in ("means_float64", "sumsq_float64", "means_float32", "sumsq_float32")
                ),
                verdict(exact),
            )
        )
    return Table(
        f"{shape_text(records[0])} float32 split over gloo processes of one thread",
        (
            *("processes", "update", "gain", "all_reduce"),
            *("means, float64", "sumsq, float64", "means, float32", "sumsq, float32", ""),
        ),
        rows,
        (
            "Seconds of the slowest process. Largest relative differences from one process, over "
            f"classes; targets: {_FLOAT64_TARGET:.0e} for float64, {_FLOAT32_TARGET:.0e} for "
            "float32, whose chunks depend on the split.",
        ),
    )


def reduce_table(records: Sequence[Record]) -> Table:
    """(j) `all_reduce` of the states of some layers."""
    rows = [
        (
            f"{_layers(record)}{record['shape']['num_classes']:,} x "
            f"{record['shape']['num_features']:,}",
            f"{record['num_processes']}{_oversubscribed(record)}",
            bytes_text(record["state_bytes"]),
            seconds_text(record["all_reduce"]),
            seconds_text(record["bare_all_reduce"]),
            f"{record['all_reduce'] / record['bare_all_reduce']:.2f}",
            seconds_text(record["read"]),
        )
        for record in records
    ]
    return Table(
        "all_reduce of a state against torch.distributed.all_reduce of its means",
        ("K x d", "processes", "state", "all_reduce", "bare", "ratio", "one read of it"),
        rows,
    )


def _oversubscribed(record: Record) -> str:
    return " (oversubscribed)" if record["num_processes"] > record["num_cores"] else ""


def _layers(record: Record) -> str:
    layers = record.get("num_layers", 1)  # which older results do not have
    return f"{layers} of " if layers > 1 else ""


def _over(extra: int | None, states: int) -> str:
    return "-" if extra is None else f"{extra / states:.2f}"


def _memory_verdict(record: Record) -> str:
    found = (record["extra_bytes"], record["extra_bytes_8x"])
    if None in found:
        return "-"
    return verdict(max(found) <= _STATES_TARGET * record["state_bytes"])
