from typing import ClassVar, Literal

class FeatureType:
    float32: ClassVar[FeatureType]
    float64: ClassVar[FeatureType]
    float16: ClassVar[FeatureType]
    bfloat16: ClassVar[FeatureType]

class LabelType:
    int32: ClassVar[LabelType]
    int64: ClassVar[LabelType]

compiler: str
cuda: str | Literal[False]

def class_moments(
    features: int,
    feature_type: FeatureType,
    num_rows: int,
    num_columns: int,
    row_stride_in_elements: int,
    column_stride_in_elements: int,
    labels: int,
    label_type: LabelType,
    ignore_index: int,
    counts: int,
    means: int,
    sumsq: int,
    num_classes: int,
    num_threads: int,
    /,
) -> None: ...
def shift_rows(
    features: int,
    feature_type: FeatureType,
    num_rows: int,
    num_columns: int,
    row_stride_in_elements: int,
    column_stride_in_elements: int,
    labels: int,
    label_type: LabelType,
    ignore_index: int,
    pivots: int,
    scales: int,
    offsets: int,
    out: int,
    num_threads: int,
    /,
) -> None: ...
def squared_distances(
    points: int,
    center: int,
    out: int,
    num_points: int,
    num_columns: int,
    num_threads: int,
    /,
) -> None: ...
def class_moments_cuda_scratch(
    num_rows: int,
    num_columns: int,
    feature_type: FeatureType,
    num_classes: int,
    /,
) -> int: ...
def class_moments_cuda(
    features: int,
    feature_type: FeatureType,
    num_rows: int,
    num_columns: int,
    row_stride_in_elements: int,
    column_stride_in_elements: int,
    labels: int,
    label_type: LabelType,
    ignore_index: int,
    counts: int,
    means: int,
    sumsq: int,
    num_classes: int,
    bad_label: int,
    scratch: int,
    scratch_bytes: int,
    stream: int,
    /,
) -> None: ...
def shift_rows_cuda(
    features: int,
    feature_type: FeatureType,
    num_rows: int,
    num_columns: int,
    row_stride_in_elements: int,
    column_stride_in_elements: int,
    labels: int,
    label_type: LabelType,
    ignore_index: int,
    pivots: int,
    scales: int,
    offsets: int,
    out: int,
    stream: int,
    /,
) -> None: ...
def squared_distances_cuda(
    points: int,
    center: int,
    out: int,
    num_points: int,
    num_columns: int,
    stream: int,
    /,
) -> None: ...
def simd_level() -> str: ...
def available_simd_levels() -> list[str]: ...
def set_simd_level(name: str, /) -> None: ...
def row_order() -> str: ...
def set_row_order(name: str, /) -> None: ...
