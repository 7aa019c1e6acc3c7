"""The columns of every table, in one place. A table is checked against its schema on write and on read."""

from typing import Any

import pyarrow as pa

from storage.errors import StoreError

ANY_WIDTH = 0  # in a schema: every row has equally many numbers, how many is the encoder's affair


def vector(value_type: pa.DataType) -> pa.DataType:
    """A column of vectors of one width: plain Arrow FixedSizeList, no extension type."""
    return pa.list_(value_type, ANY_WIDTH)


CONCEPT_RECORD = pa.struct(
    [
        ("concept_id", pa.int32()),
        ("name", pa.string()),
        ("score", pa.float32()),
        ("global_score", pa.float32()),
        ("local_score", pa.float32()),
        ("anchor_similarity", pa.float32()),
        ("cluster", pa.int32()),
        ("probability", pa.float32()),
        ("donors", pa.list_(pa.string())),
    ]
)

SCHEMAS: dict[str, pa.Schema] = {
    "samples": pa.schema(
        [
            ("sample_id", pa.string()),  # <source>/<shard stem>/<key>
            ("shard", pa.string()),  # <source>/<shard stem>
            ("key", pa.string()),
            ("caption", pa.string()),
            ("width", pa.int32()),  # pixels, upright
            ("height", pa.int32()),
            ("bytes", pa.int64()),  # of the image as stored
            ("sha256", pa.string()),  # of the image as stored
        ]
    ),
    "captions": pa.schema(  # where all of a sample's are used, not the first alone
        [("sample_id", pa.string()), ("captions", pa.list_(pa.string()))]
    ),
    "quarantine": pa.schema(
        [
            ("sample_id", pa.string()),
            ("shard", pa.string()),
            ("key", pa.string()),
            ("stage", pa.string()),
            ("reason", pa.string()),
            ("detail", pa.string()),
        ]
    ),
    "truth": pa.schema([("sample_id", pa.string()), ("classes", pa.list_(pa.string()))]),
    "embeddings": pa.schema(
        [("sample_id", pa.string()), ("vector", vector(pa.float16()))]  # unit length
    ),
    "duplicates": pa.schema(
        [
            ("sample_id", pa.string()),
            ("reason", pa.string()),  # duplicate_bytes or near_duplicate
            ("of", pa.string()),  # the earlier sample that it repeats
        ]
    ),
    "nouns": pa.schema([("sample_id", pa.string()), ("nouns", pa.list_(pa.string()))]),  # in the singular
    "candidates": pa.schema(  # for the vocabulary, those it leaves out among them
        [
            ("name", pa.string()),
            ("surfaces", pa.list_(pa.string())),  # forms that captions name it by
            ("frequency", pa.int64()),
            ("visualness", pa.float64()),  # AUC; null where it was not measured
            ("visualness_low", pa.float64()),  # its confidence interval
            ("visualness_high", pa.float64()),
            ("reason", pa.string()),  # kept, added, too_rare, too_common or not_visual
        ]
    ),
    "concepts": pa.schema(
        [
            ("concept_id", pa.int32()),
            ("name", pa.string()),
            ("source", pa.string()),  # gallery or captions
            ("frequency", pa.int64()),  # captions of the corpus that name it
            ("vector", vector(pa.float32())),  # unit length
        ]
    ),
    "mentions": pa.schema([("sample_id", pa.string()), ("concept_ids", pa.list_(pa.int32()))]),
    "ids": pa.schema([("sample_id", pa.string())]),
    "neighbours": pa.schema(
        [
            ("sample_id", pa.string()),
            ("neighbour_ids", pa.list_(pa.string())),  # best first
            ("similarities", pa.list_(pa.float32())),
        ]
    ),
    "archives": pa.schema(
        [("sample_id", pa.string()), ("concepts", pa.list_(CONCEPT_RECORD))]  # best first
    ),
    "presence": pa.schema(  # of each concept of an archive, in the order it had before unlikely ones went
        [("sample_id", pa.string()), ("probabilities", pa.list_(pa.float32()))]
    ),
    "regions": pa.schema(  # a row per region, those of an image together
        [("sample_id", pa.string()), ("vector", vector(pa.float16()))]  # before the projection
    ),
    "confusion": pa.schema(  # sparse: only pairs of labels that occur
        [("image_id", pa.string()), ("truth", pa.int32()), ("predicted", pa.int32()), ("pixels", pa.int64())]
    ),
    "metrics": pa.schema(
        [
            ("benchmark", pa.string()),
            ("protocol", pa.string()),
            ("model", pa.string()),
            ("class_index", pa.int32()),
            ("class_name", pa.string()),
            ("iou", pa.float64()),  # null where the class occurs neither in truth nor in prediction
            ("present", pa.bool_()),  # in the truth
        ]
    ),
    "losses": pa.schema(
        [
            ("step", pa.int64()),
            ("epoch", pa.float64()),
            ("loss", pa.float64()),  # nats
            ("rate", pa.float64()),
            ("gradient_norm", pa.float64()),  # before it is clipped
            ("skipped", pa.bool_()),  # no finite loss and gradient: the weights stayed as they were
        ]
    ),
    "speeds": pa.schema(  # differs between two runs that are otherwise the same
        [
            ("step", pa.int64()),
            ("samples_per_second", pa.float64()),
            ("data_wait", pa.float64()),  # share of the step's time
        ]
    ),
}


def conform(table: pa.Table, name: str, where: str = "") -> pa.Table:
    """Returns the table if its columns are those of schema ``name`` (vector widths are free).

    Raises:
        StoreError: naming the first column that differs.
    """
    expected = SCHEMAS[name]
    if table.column_names != expected.names:
        raise StoreError(
            f"{where or name}: columns {table.column_names} where the table '{name}' has {expected.names}"
        )
    for field in expected:
        found = table.schema.field(field.name).type
        if not _matches(found, field.type):
            raise StoreError(
                f"{where or name}: column '{field.name}' is {found}, the table '{name}' has {field.type}"
            )
    return table


def _matches(found: pa.DataType, expected: pa.DataType) -> bool:
    if pa.types.is_fixed_size_list(expected):
        return bool(pa.types.is_fixed_size_list(found) and found.value_type == expected.value_type)
    return bool(found == expected)


def table_of(name: str, columns: dict[str, Any]) -> pa.Table:
    """A table of schema ``name`` from columns given as arrays or lists."""
    schema = SCHEMAS[name]
    arrays = [_column(columns[field.name], field.type) for field in schema]
    return conform(pa.table(arrays, names=schema.names), name)


def _column(values: Any, kind: pa.DataType) -> pa.Array:
    return values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values, kind)


def vector_column(vectors_ND: Any, kind: pa.DataType) -> pa.Array:
    """A [N, D] numpy array as a plain Arrow FixedSizeList column."""
    flat = pa.array(vectors_ND.reshape(-1), kind)
    return pa.FixedSizeListArray.from_arrays(flat, vectors_ND.shape[1])
