from typing import ClassVar

class FeatureType:
    float32: ClassVar[FeatureType]
    float64: ClassVar[FeatureType]
    float16: ClassVar[FeatureType]
    bfloat16: ClassVar[FeatureType]

class LabelType:
    int32: ClassVar[LabelType]
    int64: ClassVar[LabelType]

compiler: str
cuda: bool

def class_moments(
    features: int,
    feature_type: FeatureType,
    num_rows: int,
    num_columns: int,
    row_stride: int,
    column_stride: int,
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
    row_stride: int,
    column_stride: int,
    labels: int,
    label_type: LabelType,
    ignore_index: int,
    pivots: int,
    out: int,
    num_threads: int,
    /,
) -> None: ...
def simd_level() -> str: ...
def available_simd_levels() -> list[str]: ...
def set_simd_level(name: str, /) -> None: ...
