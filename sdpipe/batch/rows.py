"""The rows of a file of jobs: JSON lines, CSV or Parquet, read once, and again one by one.

A row is kept as the place where it begins, not as values: a million of them are 8 MB. What is not
JSON lines, or cannot be read twice, is copied into a temporary file of JSON lines first.
"""

import codecs
import contextlib
import csv
import io
import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Self

from sdpipe.errors import UsageError
from sdpipe.io.files import write_error
from sdpipe.settings import RULES, check_name

Source = str | os.PathLike[str] | IO[bytes] | Iterable[Mapping[str, Any]]

SUFFIXES = {".jsonl": "line", ".ndjson": "line", ".csv": "line", ".parquet": "row"}

COLUMNS = frozenset(("id", *RULES)) - {"save_int"}
"""What a row may have."""

MAX_ROW = 2**20  # bytes

Row = dict[str, Any]


class RowError(UsageError):
    """One row cannot be drawn; the others may."""


class Rows:
    """The rows of a file, of a stream of JSON lines, or of mappings.

    name: what messages call the whole; unit: what they call one, "line" or "row".
    folder: in which the names of images are looked up.

    Raises:
        UsageError: there is no such file, its kind is unknown, or its columns are no settings.
    """

    def __init__(self, source: Source) -> None:
        self.folder = Path()
        if isinstance(source, str | os.PathLike):
            path = Path(source)
            self.name, self.folder = str(path), path.parent
            suffix = path.suffix.lower()
            if suffix not in SUFFIXES:
                raise UsageError(
                    self.name, "is no file of jobs", "give JSON lines (.jsonl), .csv or .parquet"
                )
            self.unit = SUFFIXES[suffix]
            try:
                self._file: IO[bytes] = path.open("rb")
            except OSError as error:
                raise UsageError(self.name, f"cannot be read: {error.strerror}") from error
            if (reader := {".csv": _csv_rows, ".parquet": _parquet_rows}.get(suffix)) is not None:
                with self._file as file:
                    self._file = _spool(reader(file, self.name))
        elif hasattr(source, "read"):
            self.name, self.unit = "standard input", "line"
            self._file = _copy(source)  # type: ignore[arg-type]
        elif isinstance(source, Mapping) or not isinstance(source, Iterable):
            raise UsageError("jobs", "are no file and no list of rows", f"give [{EXAMPLE}]")
        else:
            self.name, self.unit = "jobs", "row"
            self._file = _spool(enumerate(source, 1))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def lines(self) -> Iterator[tuple[int, int, bytes]]:
        """Each row that is not empty: its number, from 1, the place where it begins, its text.

        Raises:
            UsageError: they are UTF-16 text.
        """
        at = number = 0
        self._file.seek(0)
        if b"\0" in self._file.read(4):  # of every character of ASCII, one byte of two
            raise UsageError(self.name, "is not UTF-8 text", "save it as UTF-8")
        self._file.seek(0)
        while line := self._file.readline(MAX_ROW + 1):
            number += 1
            if line.strip(b" \t\r\n" + codecs.BOM_UTF8):
                yield number, at, line
            at += len(line)
            while len(line) > MAX_ROW and not line.endswith(b"\n"):  # the rest of one too long
                line = self._file.readline(MAX_ROW + 1)
                at += len(line)

    def read(self, place: int) -> Row:
        """The row that begins at a place. Raises RowError as `parse`."""
        self._file.seek(place)
        return self.parse(self._file.readline(MAX_ROW + 1))

    def parse(self, line: bytes) -> Row:
        """The row that a line holds.

        Raises:
            RowError: it is no JSON object, or has what no job has.
        """
        if len(line) > MAX_ROW:
            raise RowError(f"a {self.unit} of more than {MAX_ROW} bytes", "is too long")
        try:
            row = json.loads(line.removeprefix(codecs.BOM_UTF8).decode())
        except UnicodeDecodeError as error:
            raise RowError("it", "is not UTF-8 text", "save the file as UTF-8") from error
        except (ValueError, RecursionError) as error:
            raise RowError("it", f"is no JSON: {error}", f"write {EXAMPLE}") from error
        if not isinstance(row, dict):
            raise RowError(f"{line[:80].decode(errors='replace').strip()}", "is no JSON object")
        if (wrong := row.get(_WRONG)) is not None:
            raise RowError(*wrong)
        for name in row:
            if name not in COLUMNS:
                check_column(name)
        return row


EXAMPLE = '{"prompt": "a red apple", "seed": 1}'

_WRONG = "\0wrong"  # in a copied row, in place of its values: what is wrong with it


def check_column(name: object) -> None:
    """Refuses what no job has. Raises UsageError."""
    if name == "save_int":
        raise RowError("save_int", "is not for many images", "leave it out, or use sdpipe generate")
    check_name(str(name))


def _copy(stream: IO[bytes]) -> IO[bytes]:
    with _temporary() as file:
        while block := stream.read(2**20):
            file.write(block)
    return file


def _spool(rows: Iterable[tuple[int, Mapping[str, Any]]]) -> IO[bytes]:
    """A temporary file with each row in the line of its number."""
    last = 0
    with _temporary() as file:
        for number, row in rows:
            try:
                text = json.dumps(row)
            except (TypeError, ValueError) as error:
                text = json.dumps({_WRONG: ["it", f"is no JSON object: {error}"]})
            file.write(b"\n" * (number - last - 1) + text.encode() + b"\n")
            last = number
    return file


@contextlib.contextmanager
def _temporary() -> Iterator[IO[bytes]]:
    """A temporary file, which stays open unless filling it fails."""
    file = tempfile.TemporaryFile()  # noqa: SIM115
    try:
        yield file
    except OSError as error:
        file.close()
        raise write_error(Path(tempfile.gettempdir()), error) from error
    except BaseException:
        file.close()
        raise


def _csv_rows(file: IO[bytes], name: str) -> Iterator[tuple[int, Row]]:
    """The rows of a CSV file, by the lines where they begin."""
    with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        reader = csv.reader(text, strict=True)
        try:
            header = [column.strip() for column in next(reader, [])]
            _check_header(header, name)
            while True:
                number = reader.line_num + 1
                try:
                    cells = next(reader)
                except StopIteration:
                    return
                if any(cells):
                    yield number, _from_cells(header, cells)
        except csv.Error as error:
            raise UsageError(f"{name}, line {reader.line_num}", f"is no CSV: {error}") from error
        except UnicodeDecodeError as error:
            raise UsageError(name, "is not UTF-8 text", "save it as UTF-8") from error


def _check_header(header: list[str], name: str) -> None:
    """Refuses columns that are no settings, as of a file without a line of names."""
    if not header:
        raise UsageError(name, "is empty", "give a line of names, such as prompt,seed, and rows")
    for column in header:
        try:
            if column not in COLUMNS:
                check_column(column)
        except UsageError as error:
            remedy = error.remedy
            if set(header).isdisjoint(COLUMNS):
                remedy = "the first line names the columns, with commas, such as prompt,seed"
            raise UsageError(
                f"{name}: the column {column[:80]!r}", "is no setting", remedy
            ) from None
        if header.count(column) > 1:
            raise UsageError(f"{name}: the column {column!r}", "is there twice", "leave one out")


def _from_cells(header: list[str], cells: list[str]) -> Row:
    if len(cells) > len(header):
        rule = f"has {len(cells)} values, and there are {len(header)} columns"
        return {_WRONG: ["it", rule, 'put "quotation marks" around a text with commas']}
    row = {}
    for column, cell in zip(header, cells, strict=False):
        if cell != "":
            row[column] = cell if column == "id" else RULES[column].parse(cell)
    return row


def _parquet_rows(file: IO[bytes], name: str) -> Iterator[tuple[int, Row]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        remedy = 'pip install "sdpipe[parquet]", or save it as .jsonl'
        raise UsageError(name, "needs the package pyarrow", remedy) from error
    try:
        table = parquet.ParquetFile(file)
        _check_header(table.schema_arrow.names, name)
        number = 0
        for batch in table.iter_batches(1024):
            for row in batch.to_pylist():
                number += 1
                yield number, {column: _whole(value) for column, value in row.items()}
    except ArrowException as error:
        raise UsageError(name, f"is no Parquet file: {error}") from error


def _whole(value: Any) -> Any:
    """A whole number as int: pandas makes a column with gaps of 1 one of 1.0 and nan."""
    if not isinstance(value, float):
        return value
    return int(value) if value.is_integer() else None if math.isnan(value) else value
