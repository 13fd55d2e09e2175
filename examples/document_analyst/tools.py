"""Tools that read documents: list, read, search, and ask questions of CSV files.

All are confined to one folder (DOCUMENTS_DIR) and change nothing, so that a run may repeat them after a crash.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from app.tools import tool
from examples.document_analyst.csv_table import Condition, CsvTable, Measure
from examples.document_analyst.documents_folder import DocumentError, DocumentsFolder

MAX_DOCUMENTS = 200
MAX_HITS = 20
MAX_HIT_CHARS = 300


@tool(effect="read_only")
def list_documents(folder: str = "") -> dict[str, Any]:
    """List the documents, with their paths and sizes.

    Args:
        folder: only this subfolder, such as `reports`; empty for all.
    """
    documents = DocumentsFolder.configured()
    found = list(documents.files(folder))
    listed = [{"path": documents.name_of(path), "bytes": path.stat().st_size} for path in found[:MAX_DOCUMENTS]]
    return {"documents": listed, "not_listed": len(found) - len(listed)}


@tool(effect="read_only")
def read_document(
    path: str,
    first_line: Annotated[int, Field(ge=1)] = 1,
    max_lines: Annotated[int, Field(ge=1, le=500)] = 200,
) -> dict[str, Any]:
    """Read the text of a document, a part at a time if it is long.

    Args:
        path: as list_documents gives it.
        first_line: where to start.
        max_lines: how many lines to return.
    """
    lines = DocumentsFolder.configured().text_of(path).splitlines()
    part = lines[first_line - 1 : first_line - 1 + max_lines]
    next_line = first_line + len(part)
    return {
        "path": path,
        "lines": len(lines),
        "next_line": next_line if next_line <= len(lines) else None,
        "text": "\n".join(part),
    }


@tool(effect="read_only")
def search_documents(query: Annotated[str, Field(min_length=1, max_length=200)], folder: str = "") -> dict[str, Any]:
    """Find the lines that contain all words of a query, in any order, whatever their case.

    Args:
        query: one or more words.
        folder: only this subfolder; empty for all.
    """
    documents = DocumentsFolder.configured()
    words = query.casefold().split()
    hits: list[dict[str, Any]] = []
    total = 0
    for path in documents.files(folder):
        name = documents.name_of(path)
        for number, line in enumerate(_lines(documents, name), start=1):
            if all(word in line.casefold() for word in words):
                total += 1
                if len(hits) < MAX_HITS:
                    hits.append({"path": name, "line": number, "text": line.strip()[:MAX_HIT_CHARS]})
    return {"hits": hits, "not_shown": total - len(hits)}


@tool(effect="read_only")
def summarize_csv(path: str) -> dict[str, Any]:
    """Describe a CSV file: its columns with their types, ranges, sums and frequent values.

    Args:
        path: as list_documents gives it.
    """
    table = CsvTable.parse(DocumentsFolder.configured().text_of(path))
    return {"path": path, "rows": len(table.rows), "columns": table.described()}


@tool(effect="read_only")
def query_csv(
    path: str,
    measure: Measure = "count",
    column: str | None = None,
    where: list[Condition] | None = None,
    group_by: str | None = None,
) -> dict[str, Any]:
    """Count, sum, average or find the extremes of a column of a CSV file, over all rows or by group.

    Args:
        path: as list_documents gives it.
        measure: what to compute; all but count need `column`.
        column: the column of numbers to compute it of.
        where: only rows that fulfil all of these conditions.
        group_by: a column; gives one result for each of its values, the greatest first.
    """
    table = CsvTable.parse(DocumentsFolder.configured().text_of(path)).where(where or [])
    answer: dict[str, Any] = {"measure": measure, "column": column, "rows": len(table.rows)}
    if group_by is None:
        return answer | {"result": table.measured(measure, column)}
    results = {value: group.measured(measure, column) for value, group in table.grouped(group_by).items()}
    ordered = sorted(results.items(), key=lambda item: item[1] or 0.0, reverse=True)
    return answer | {"group_by": group_by, "results": dict(ordered)}


def _lines(documents: DocumentsFolder, name: str) -> list[str]:
    try:
        return documents.text_of(name).splitlines()
    except DocumentError:
        return []  # an image or an archive among the documents: nothing to search in
