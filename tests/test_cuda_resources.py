"""The checks of what nvcc makes of the CUDA kernels, on captured reports; no toolkit is needed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

CI = Path(__file__).resolve().parent.parent / ".ci"
sys.path.insert(0, str(CI))

import cuda_model  # noqa: E402
import cuda_reports  # noqa: E402
import cuda_resources  # noqa: E402
import cuda_times  # noqa: E402
import cuda_work  # noqa: E402

HOT = "_ZN7deeprep4cuda12sum_segmentsILNS_11FeatureTypeE0ELb1EEEvNS0_5BatchEi"
CUB = "_ZN3cub17CUB_300001_SM_9006detail11EmptyKernelIvEEvv"

PTXAS = f"""\
ptxas info    : 29 bytes gmem
ptxas info    : Compiling entry function '{CUB}' for 'sm_90'
ptxas info    : Function properties for {CUB}
    64 bytes stack frame, 8 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 4 registers, used 0 barriers
ptxas info    : Compile time = 1.2 ms
ptxas info    : Compiling entry function '{HOT}' for 'sm_90'
ptxas info    : Function properties for {HOT}
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 128 registers, used 0 barriers
ptxas info    : Compile time = 300.1 ms
ptxas info    : Compiling entry function '_ZN7deeprep4cuda12add_to_stateENS0_5BatchE' for 'sm_90'
ptxas info    : Function properties for _ZN7deeprep4cuda12add_to_stateENS0_5BatchE
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 38 registers, used 1 barriers, 65536 bytes smem
"""

LOADS = "\n".join(
    f"\tld.global.nc.v4.u32 \t{{%r{4 * i},%r{4 * i + 1},%r{4 * i + 2},%r{4 * i + 3}}}, [%rd{i}];"
    for i in range(8)
)
PTX = f"""\
.visible .entry {HOT}(
\t.param .u32 {HOT}_param_1
)
.maxntid 256, 1, 1
{{
\t.reg .b32 \t%r<500>;
\tld.param.u32 \t%r1, [{HOT}_param_1];
$L__BB0_1:
\t@%p1 bra \t$L__BB0_3;
$L__BB0_2:
{LOADS}
\t@%p2 bra \t$L__BB0_2;
$L__BB0_3:
\t@%p3 bra \t$L__BB0_1;
\tret;
}}
"""


def compiled(ptxas=PTXAS, ptx=PTX, sass=None):
    return cuda_resources.Compiled(
        "sm_90", cuda_reports.parse_ptxas(ptxas), cuda_reports.parse_ptx(ptx), sass
    )


def test_a_report_becomes_a_table_without_cubs_kernels():
    small, hot = cuda_reports.parse_ptxas(PTXAS)
    assert (small.kernel, small.registers, small.shared) == ("add_to_state", 38, 65536)
    assert (hot.kernel, hot.registers) == ("sum_segments<float32, aligned>", 128)
    # 128 registers for 64 threads: eight blocks of two warps; 64 KiB of 228 KiB: three of eight.
    assert (hot.resident_warps, hot.occupancy) == (16, 0.25)
    assert small.resident_warps == 24
    table = cuda_resources.render([compiled()], "13.0.88")
    assert "| `sum_segments<float32, aligned>` | 128 | 0 | 0 | 0 | 64 | 16 | 25.0% |" in table
    assert cuda_resources.find_faults(compiled()) == []


@pytest.mark.parametrize(
    ("was", "becomes", "fault"),
    [
        ("0 bytes spill stores", "8 bytes spill stores", "spills 8 bytes"),
        ("0 bytes spill loads", "12 bytes spill loads", "loads 12 bytes again"),
        ("0 bytes stack frame", "24 bytes stack frame", "24 bytes of stack"),
    ],
)
def test_spills_and_stack_are_faults(was, becomes, fault):
    head, cubs, ours = PTXAS.partition(f"Function properties for {HOT}")
    faults = cuda_resources.find_faults(compiled(head + cubs + ours.replace(was, becomes, 1)))
    assert len(faults) == 1
    assert "sum_segments<float32, aligned> on sm_90" in faults[0]
    assert fault in faults[0]


@pytest.mark.parametrize(
    ("was", "becomes", "fault"),
    [
        ("ld.global.nc.v4.u32", "ld.global.nc.v2.u32", "7 of 8 loads"),
        ("\tld.global.nc.v4.u32 \t{%r0,%r1,%r2,%r3}, [%rd0];\n", "", "7 of 7 loads"),
        ("\tret;", "\tst.local.u32 [%rd1], %r1;\n\tret;", "1 loads and stores of local memory"),
        ("\t@%p2 bra \t$L__BB0_2;\n", "\t@%p2 bra \t$L__BB0_3;\n", None),
    ],
)
def test_narrow_loads_and_local_memory_in_ptx_are_faults(was, becomes, fault):
    assert was in PTX
    faults = cuda_resources.find_faults(compiled(ptx=PTX.replace(was, becomes, 1)))
    # The last case has no inner loop: the loads then count where they are, in the outer one.
    assert [fault in each for each in faults] == ([] if fault is None else [True])


def test_no_loop_with_loads_is_a_fault():
    ptx = PTX.replace("\t@%p2 bra \t$L__BB0_2;\n", "").replace("\t@%p3 bra \t$L__BB0_1;\n", "")
    assert "no loop contains" in cuda_resources.find_faults(compiled(ptx=ptx))[0]


def sass_of(*lines):
    body = "\n".join(
        f"        /*{16 * i:04x}*/    {line} ;   /* 0x0 */" for i, line in enumerate(lines)
    )
    return cuda_reports.parse_sass(f"\t\tFunction : {HOT}\n{body}\n")


def test_sass_is_counted_along_its_longest_path():
    sass = sass_of(
        "MOV R1, R2",  # 0x00
        "@P0 LDG.E.128.CONSTANT R4, desc[UR4][R2.64]",  # 0x10: the hot loop
        "@P0 LDG.E.128.CONSTANT R8, desc[UR4][R2.64+0x10]",
        "@!P1 BRA 0x60",  # over two, which then jump over one
        "FADD R1, R1, R4",
        "BRA 0x70",
        "FADD R1, R1, R8",
        "LDG.E.128.CONSTANT R12, desc[UR4][R2.64]",
        "@P2 BRA P1, 0x10",
        "@P3 BRA 0x0",
        "EXIT",
    )
    code = sass["sum_segments<float32, aligned>"]
    hot = code.hot_loop(r"LDG\.E\.128")
    assert hot == (1, 8)
    assert code.count_executed(hot, "") == 7
    assert code.count_executed(hot, "FADD") == 1
    assert code.count_executed((0, 9), "", without=[hot]) == 2
    assert code.count_shortest(hot, "LDG", 3) == 6
    with pytest.raises(ValueError, match="no path executes LDG 4 times"):
        code.count_shortest(hot, "LDG", 4)
    assert code.loops_around(hot) == [(0, 9)]
    # The first load is needed before the third is issued, the second is not.
    assert cuda_reports.most_in_flight(code, hot, r"LDG\.E\.128") == 2
    faults = cuda_resources.find_faults(compiled(sass=sass))
    assert ["3 of 3 loads" in each for each in faults] == [True]


def test_a_difference_is_named():
    made = cuda_resources.render([compiled()], "13.0.88")
    assert cuda_resources.differences(made, made) == []
    with_loops = f"{made}\n{cuda_resources._LOOPS_TITLE}\n\n| only with cuobjdump |\n"
    assert cuda_resources.differences(with_loops, made) == []
    changed = made.replace("| 128 |", "| 96 |")
    lines = cuda_resources.differences(changed, made)
    assert [line[0] for line in lines] == ["-", "+"]
    assert all("sum_segments<float32, aligned>" in line for line in lines)


def test_reports_that_are_not_understood_raise():
    with pytest.raises(ValueError, match="names no kernel"):
        cuda_reports.parse_ptxas("ptxas info    : 29 bytes gmem\n")
    with pytest.raises(ValueError, match="reports no registers"):
        cuda_reports.parse_ptxas(PTXAS.replace("Used 128", "Uses 128"))
    with pytest.raises(ValueError, match="template argument"):
        cuda_reports.kernel_name("_ZN7deeprep4cuda12add_to_stateIdEEvv")


def test_a_missing_nvcc_fails_loudly(monkeypatch, capsys):
    monkeypatch.setattr(cuda_resources.shutil, "which", lambda name: None)
    assert cuda_resources.main(["--check"]) == 1
    assert "NVCC IS MISSING" in capsys.readouterr().err


def test_the_committed_table_has_no_spills_and_the_model_follows_from_it():
    rows = [line.split("|") for line in cuda_resources.TABLE.read_text().splitlines()]
    kernels = [row for row in rows if len(row) == 10 and row[1].strip().startswith("`")]
    assert len(kernels) % len(cuda_reports.LIMITS) == 0
    assert len(kernels) > 0
    assert {(row[4].strip(), row[5].strip()) for row in kernels} == {("0", "0")}
    assert cuda_model.main(["--check"]) == 0


def test_the_model_cuts_rows_up_as_the_plan_does():
    constants = cuda_work.read_constants()
    assert constants["kBlockBytes"] == 128 * 1024
    # Worked out by hand from csrc/plan.h: 512 rows a block, 62 blocks a group, 64 groups.
    work = cuda_work.cut_up(cuda_model.Shape(2_000_000, 64, 10), 4, constants)
    assert (work.groups, work.blocks, work.strips, work.slice_rows) == (64, 3907, 1, 51.2)
    assert work.class_segments == 4
    assert [cuda_work.rounds_of(rows) for rows in (0, 1, 7, 8, 64, 67)] == [0, 1, 1, 1, 8, 9]
    assert [cuda_work.team_threads(d) for d in (1, 5, 64, 96, 768)] == [1, 2, 16, 32, 32]


def test_the_model_repeats_the_cycles_that_were_simulated():
    """Within a third, the worst being the chunks of one row, and within 15 % but for three."""
    found = cuda_model.calibration(cuda_work.read_constants())
    errors = [
        abs(model / simulated - 1)
        for row, models in zip(cuda_model.MEASURED, found, strict=True)
        for simulated, model in zip(row[3:], models, strict=True)
        if simulated is not None
    ]
    assert max(errors) < 1 / 3
    assert sum(error > 0.15 for error in errors) <= 3


def test_a_batch_that_leaves_multiprocessors_idle_says_so():
    kernels = cuda_times.read_kernels(cuda_resources.TABLE.read_text())
    constants = cuda_work.read_constants()
    chip = cuda_times.CHIPS[1]
    idle, few, many = (
        cuda_times.predict(
            cuda_model.Shape(*shape), "float32", chip, kernels["sm_90", "float32"], constants
        ).fused_pass
        for shape in ((256, 512, 10), (4096, 512, 10), (4096, 512, 1000))
    )
    assert [each.kernel for each in (idle, few, many)] == [
        *("sum_segments", "sum_chunks", "sum_segments")
    ]
    assert (idle.at_work(chip), idle.resident_warps(chip)) == (20, 2)
    assert (few.at_work(chip), many.at_work(chip)) == (132, 132)


def test_more_bandwidth_never_makes_an_update_slower():
    kernels = cuda_times.read_kernels(cuda_resources.TABLE.read_text())
    constants = cuda_work.read_constants()
    for shape in cuda_model.GPU_SHAPES:
        for dtype in cuda_model.DTYPES:
            for chip in cuda_times.CHIPS:
                of_chip = kernels[chip.architecture, dtype]
                found = cuda_times.predict(shape, dtype, chip, of_chip, constants)
                assert 0 < found.fraction < 1
                fast = cuda_times.Chip(**{**vars(chip), "bandwidth": 2 * chip.bandwidth})
                assert (
                    cuda_times.predict(shape, dtype, fast, of_chip, constants).total < found.total
                )
