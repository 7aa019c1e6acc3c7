"""Tables as bytes, the same on every machine and for every number of workers."""

import io
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from storage.errors import StoreError
from storage.files import Folder
from storage.schemas import conform


def table_bytes(table: pa.Table, name: str) -> bytes:
    """Parquet of a table of schema ``name``.

    Raises:
        StoreError: if the columns are not the schema's.
    """
    sink = io.BytesIO()
    rows = conform(table, name).combine_chunks()
    pq.write_table(rows, sink, compression="zstd", store_schema=True, write_page_checksum=True)
    return sink.getvalue()


def read_table(folder: Folder, file: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Rows of a part, named ``<shard>.<table>.parquet``, checked against the table's schema.

    Raises:
        StoreError: for an unreadable part, or other columns than the schema's.
    """
    where = f"{folder.url}/{file}"
    try:
        with folder.open(file) as stream, pq.ParquetFile(stream, page_checksum_verification=True) as parquet:
            conform(parquet.schema_arrow.empty_table(), file.split(".")[-2], where)
            return parquet.read(columns)
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{where} cannot be read ({error}); remove {folder.url} and run again") from error
