"""The rows of a metadata.jsonl, .csv or .parquet, as Hugging Face's `imagefolder` names them."""

import csv
import io
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from uvit_jax.errors import UserError

FILE_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")

# A row: where it is, for errors, and its fields.
Row = tuple[str, dict[str, Any]]


def read_rows(path: pathlib.Path) -> list[Row]:
    """All rows of a file of one of `FILE_NAMES`, in order.

    An empty cell of a CSV is None, its others are strings.

    Raises:
      UserError: naming the line that is not such a row, or for a Parquet file where pyarrow isn't
        installed.
    """
    reader = {".jsonl": _json_lines, ".csv": _csv_rows, ".parquet": _parquet_rows}[path.suffix]
    try:
        return list(reader(path))
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror or error})") from None


def _json_lines(path: pathlib.Path) -> Iterator[Row]:
    # Not splitlines(): JSON's strings may hold other line separators of Unicode's.
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            fields = json.loads(_text(where, line))
        except UserError:
            raise
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where} is not JSON ({error}), expected an object a line") from None
        if not isinstance(fields, dict):
            raise UserError(f'{where} is {short(fields)}, expected an object with a "file_name"')
        yield where, fields


def _csv_rows(path: pathlib.Path) -> Iterator[Row]:
    lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    text = "\n".join(_text(f"{path} line {number}", line) for number, line in enumerate(lines, 1))
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    names: list[str] = []
    try:
        for cells in reader:
            where = f"{path} line {reader.line_num}"
            if not any(cells):
                continue
            if not names:
                names = [cell.strip() for cell in cells]
                if len(set(names)) < len(names):
                    raise UserError(
                        f"{where} names a column twice ({', '.join(names)}), expected each once"
                    )
            elif len(cells) != len(names):
                raise UserError(
                    f"{where} has {len(cells)} cells, expected {len(names)}, one for each of "
                    f"{', '.join(names)} (a cell with a comma in it wants quotation marks)"
                )
            else:
                yield where, {name: cell or None for name, cell in zip(names, cells, strict=True)}
    except csv.Error as error:
        raise UserError(
            f"{path} line {reader.line_num} is not CSV ({error}), expected cells with commas"
        ) from None


def _parquet_rows(path: pathlib.Path) -> Iterator[Row]:
    try:
        import pyarrow  # An extra of other packages: only who has such a file pays.
        import pyarrow.parquet
    except ImportError:
        raise UserError(
            f"{path} needs pyarrow to be read (pip install pyarrow), expected that, or the same "
            f"as a metadata.csv"
        ) from None
    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise UserError(
            f"{path} can't be read ({' '.join(str(error).split())}), expected a Parquet file"
        ) from None
    yield from ((f"{path} row {number}", row) for number, row in enumerate(rows, 1))


def short(value: Any) -> str:
    """A value as JSON, cut to 60 letters."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _text(where: str, line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = line[error.start]
        raise UserError(
            f"{where} has the byte 0x{byte:02x} at column {error.start + 1}, expected UTF-8"
        ) from None
