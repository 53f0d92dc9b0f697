"""The host executor runs correct kernels and catches every kind of planted bug."""

from __future__ import annotations

import os
import re
import subprocess

import pytest

BUILDS = ("plain", "address", "thread")

# What a build says about a bug. The executor's own findings are the same in all builds.
DATA_RACE = {"thread": r"ThreadSanitizer: data race .*planted_bugs\.h"}
OUT_OF_BOUNDS = {"address": r"AddressSanitizer: heap-buffer-overflow"}
WRONG_RESULT = {"plain": r"wrong result with seed \d+"}


def everywhere(message: str) -> dict[str, str]:
    return dict.fromkeys(BUILDS, message)


BUGS = {
    "missing_barrier": DATA_RACE | WRONG_RESULT,
    "silent_missing_barrier": DATA_RACE | {"plain": "right results"},
    "shuffle_as_barrier": DATA_RACE | {"plain": "right results"},
    "warp_barrier_for_block": DATA_RACE | WRONG_RESULT,
    "missing_second_barrier": DATA_RACE | WRONG_RESULT,
    "two_blocks_one_word": DATA_RACE | {"plain": "right results"},
    "counter_written_too_early": DATA_RACE | WRONG_RESULT,
    "match_as_barrier": DATA_RACE | {"plain": "right results"},
    "read_before_waiting": DATA_RACE | {"plain": "right results"},
    "shared_out_of_bounds": OUT_OF_BOUNDS,
    "index_out_of_array": everywhere(r"thread 63: index 64 of an array of 64"),
    "global_out_of_bounds": OUT_OF_BOUNDS,
    "uninitialised_shared": everywhere("wrong result with seed 0"),
    "misaligned_load": everywhere(
        r"block 0, thread \d: load128: misaligned address 0x\w+, expected a multiple of 16"
    ),
    "divergent_barrier": everywhere(
        r"divergent __syncthreads: 32 of 64 threads wait at it, thread 63 has returned"
    ),
    "barrier_against_shuffle": everywhere(
        r"__shfl_sync\(mask 0xffffffff\) can never complete: divergent __syncthreads: "
        r"lane \d+ waits at __syncthreads"
    ),
    "returned_lane": everywhere(
        r"__shfl_xor_sync\(mask 0xffffffff\) can never complete: a lane of its mask is inactive: "
        r"lane 5 has returned"
    ),
    "source_outside_mask": everywhere(
        r"__shfl_down_sync\(mask 0x000000ff\): reads from lane 8, which is not in the mask"
    ),
    "mask_disagreement": everywhere(
        r"lanes disagree on the operation or its mask: lane 7 waits at __shfl_sync\(mask 0x7fffffff"
    ),
    "operation_disagreement": everywhere(
        r"lanes disagree on the operation or its mask: lane 7 waits at __shfl_xor_sync\(mask 0xffff"
    ),
    "caller_not_in_mask": everywhere(
        r"__ballot_sync\(mask 0x00000001\): the calling lane is not in its mask"
    ),
    "mask_beyond_block": everywhere(
        r"block 0, thread \d+: __all_sync\(mask 0xffffffff\): the mask names a lane that the block"
    ),
    "never_waits": everywhere(r"block 0, thread \d+: ends without waiting for the previous kernel"),
}


def run(program, *arguments):
    command = [str(program), *arguments]
    environment = os.environ | {"TSAN_OPTIONS": "halt_on_error=1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


@pytest.mark.parametrize(("kind", "seeds"), [("plain", 100), ("address", 8), ("thread", 4)])
def test_correct_kernels_and_repaired_bugs_pass(simt_build, kind, seeds):
    done = run(simt_build(kind) / "simt_executor_test", "--seeds", str(seeds))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "all kernels gave the expected bits\n"


@pytest.mark.parametrize(
    ("bug", "kind"), [(bug, kind) for bug, builds in BUGS.items() for kind in builds]
)
def test_planted_bug_is_caught(simt_build, bug, kind):
    done = run(simt_build(kind) / "simt_executor_test", "--bug", bug)
    message = BUGS[bug][kind]
    assert re.search(message, done.stdout + done.stderr), done.stderr
    # Where a bug cannot be seen, the result is right: the sanitizer above saw more than the result.
    assert (done.returncode == 0) == (message == "right results")
