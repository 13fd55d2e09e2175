"""The example's tools, its agents and its script, without a server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from app.engine.agent import AgentDefinition
from app.engine.effects import ToolEffect
from app.engine.tools import ToolInvocation, ToolResult
from app.llm.scripted import ScriptedModel
from app.tools import ToolRegistry
from app.tools.builtin import calculate
from examples.document_analyst.csv_table import Condition, CsvTable, TableError
from examples.document_analyst.documents_folder import DocumentError, DocumentsFolder
from examples.document_analyst.tools import (
    list_documents,
    query_csv,
    read_document,
    search_documents,
    summarize_csv,
)

ROOT = Path(__file__).parents[3]
AGENTS = ROOT / "examples" / "document_analyst" / "agents"
SALES = "sales_2024.csv"


@pytest.fixture
async def registry() -> AsyncIterator[ToolRegistry]:
    registry = ToolRegistry([calculate])
    registry.load_modules(["examples.document_analyst.tools"])
    yield registry
    await registry.aclose()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "documents"
    root.mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    (root / "note.txt").write_text("One line\nanother LINE with words\n")
    monkeypatch.setenv("DOCUMENTS_DIR", str(root))
    return root


async def invoke(registry: ToolRegistry, name: str, arguments: dict[str, Any]) -> ToolResult:
    result = await registry.invoke(
        ToolInvocation(
            run_id="r",
            thread_id="t",
            agent_name="document_analyst",
            tool_call_id="c",
            tool_name=name,
            arguments=orjson.dumps(arguments).decode(),
            idempotency_key="k",
            context={},
            metadata={},
            allowed_tools=frozenset({name}),
            output_max_chars=12_000,
        )
    )
    assert isinstance(result, ToolResult)
    return result


class TestAgents:
    @pytest.mark.parametrize(
        ("path", "model"),
        [
            (AGENTS / "document_analyst.yaml", "openai/gpt-4o-mini"),
            (AGENTS / "document_analyst_offline.yaml", "scripted/document_analyst"),
            (ROOT / "agents" / "demo.yaml", "demo/assistant"),
        ],
    )
    def test_are_valid_and_name_only_tools_that_exist(self, registry: ToolRegistry, path: Path, model: str) -> None:
        registry.load_modules(["app.tools.builtin"])
        agent = AgentDefinition.model_validate(yaml.safe_load(path.read_text()))
        assert (agent.name, agent.model) == (path.stem, model)
        assert agent.instructions
        assert {spec.name for spec in registry.specs()} >= set(agent.tools)

    def test_the_offline_agent_is_the_same_but_for_its_model(self) -> None:
        online, offline = (
            yaml.safe_load((AGENTS / f"{name}.yaml").read_text())
            for name in ("document_analyst", "document_analyst_offline")
        )
        for key in ("instructions", "tools", "limits"):
            assert online[key] == offline[key]

    def test_all_tools_of_the_example_are_read_only(self, registry: ToolRegistry) -> None:
        assert {spec.effect for spec in registry.specs()} == {ToolEffect.READ_ONLY}
        assert all(spec.description for spec in registry.specs())


class TestScript:
    async def test_its_calls_succeed_and_its_answer_states_what_they_return(self, registry: ToolRegistry) -> None:
        turns = yaml.safe_load((AGENTS / "scripts" / "document_analyst.yaml").read_text())
        ScriptedModel(turns)
        *asking, answer = turns
        seen = ""
        for call in [call for turn in asking for call in turn["tool_calls"]]:
            result = await invoke(registry, call["name"], call["arguments"])
            assert result.success, result.error
            seen += result.content
        for figure in ("27425", "23112.5", "-15.7", "5 August 2024", "not yet checked", "Every shop grew"):
            assert figure in seen
        for figure in ("27,425.00", "23,112.50", "15.7 percent", "5 August 2024"):
            assert figure in " ".join(answer["text"].split())
        assert "tool_calls" not in answer


class TestListing:
    def test_shows_all_documents_or_those_of_a_folder(self) -> None:
        listed = list_documents()
        assert SALES in [document["path"] for document in listed["documents"]]
        assert listed["not_listed"] == 0
        reports = list_documents("reports")["documents"]
        assert [document["path"] for document in reports] == ["reports/annual_review_2024.md"]

    def test_leaves_out_hidden_files_and_links_that_lead_outside(self, folder: Path) -> None:
        (folder / ".env").write_text("KEY=1")
        (folder / ".git").mkdir()
        (folder / ".git" / "config").write_text("x")
        (folder / "link.txt").symlink_to(folder.parent / "secret.txt")
        assert [document["path"] for document in list_documents()["documents"]] == ["note.txt"]

    def test_of_a_folder_that_is_not_there_says_so(self) -> None:
        with pytest.raises(DocumentError, match="there is no folder 'nothing'"):
            list_documents("nothing")


class TestConfinement:
    @pytest.mark.parametrize(
        "path", ["../secret.txt", "a/../../secret.txt", "/etc/passwd", "link.txt", "linked/secret.txt"]
    )
    def test_every_way_out_is_refused(self, folder: Path, path: str) -> None:
        (folder / "link.txt").symlink_to(folder.parent / "secret.txt")
        (folder / "linked").symlink_to(folder.parent)
        for read in (read_document, summarize_csv, query_csv):
            with pytest.raises(DocumentError, match="outside of the documents folder"):
                read(path)

    @pytest.mark.parametrize("path", ["..", "/", "linked"])
    def test_for_folders_too(self, folder: Path, path: str) -> None:
        (folder / "linked").symlink_to(folder.parent)
        for search in (list_documents, lambda name: search_documents("secret", name)):
            with pytest.raises(DocumentError, match="outside of the documents folder"):
                search(path)

    def test_a_folder_that_is_itself_a_link_is_followed(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        link = folder.parent / "link"
        link.symlink_to(folder)
        monkeypatch.setenv("DOCUMENTS_DIR", str(link))
        assert read_document("note.txt")["lines"] == 2

    @pytest.mark.parametrize("path", ["\x00", "loop", "x" * 5_000])
    def test_what_is_no_path_is_an_error_for_the_model(self, folder: Path, path: str) -> None:
        (folder / "loop").symlink_to(folder / "loop")
        with pytest.raises(DocumentError):
            read_document(path)

    def test_the_folder_is_read_at_each_call(self, folder: Path) -> None:
        assert [path.name for path in DocumentsFolder.configured().files()] == ["note.txt"]


class TestReading:
    def test_returns_a_part_and_where_to_go_on(self, folder: Path) -> None:
        (folder / "long.txt").write_text("\n".join(str(number) for number in range(1, 11)))
        assert read_document("long.txt", first_line=3, max_lines=2) == {
            "path": "long.txt",
            "lines": 10,
            "next_line": 5,
            "text": "3\n4",
        }
        assert read_document("long.txt", first_line=9)["next_line"] is None
        assert read_document("long.txt", first_line=99)["text"] == ""

    def test_refuses_what_is_absent_binary_or_huge(self, folder: Path) -> None:
        (folder / "image.png").write_bytes(b"\x89PNG\xff")
        (folder / "huge.txt").write_bytes(b"x" * 2_000_001)
        for name, problem in (("no.txt", "no document"), ("image.png", "not a text"), ("huge.txt", "larger than")):
            with pytest.raises(DocumentError, match=problem):
                read_document(name)


class TestSearching:
    def test_finds_lines_with_all_words_whatever_their_case(self, folder: Path) -> None:
        assert search_documents("WORDS line")["hits"] == [
            {"path": "note.txt", "line": 2, "text": "another LINE with words"}
        ]
        assert search_documents("one words") == {"hits": [], "not_shown": 0}

    def test_counts_what_it_does_not_show_and_passes_over_what_is_no_text(self, folder: Path) -> None:
        (folder / "many.txt").write_text("needle\n" * 30)
        (folder / "image.png").write_bytes(b"\x89PNG\xff needle")
        found = search_documents("needle")
        assert (len(found["hits"]), found["not_shown"]) == (20, 10)


class TestTables:
    def test_the_sales_file_has_twelve_months_of_five_shops(self) -> None:
        summary = summarize_csv(SALES)
        columns = {column["column"]: column for column in summary["columns"]}
        assert summary["rows"] == 60
        assert columns["month"]["distinct"] == 12
        assert set(columns["shop"]["most_frequent"]) == {"Harbour", "Station", "Riverside", "Market", "Online"}
        assert columns["revenue_eur"]["sum"] == 241406.0
        assert columns["bags_sold"]["type"] == "number"

    def test_groups_are_ordered_by_their_result(self) -> None:
        answer = query_csv(SALES, "sum", "revenue_eur", group_by="shop")
        assert list(answer["results"]) == ["Station", "Riverside", "Harbour", "Online", "Market"]
        assert sum(answer["results"].values()) == 241406.0

    def test_conditions_hold_together(self) -> None:
        where = [
            Condition(column="shop", value="market"),
            Condition(column="month", operator=">=", value="2024-10"),
            Condition(column="bags_refunded", operator=">", value=10),
        ]
        answer = query_csv(SALES, "max", "bags_refunded", where=where)
        assert (answer["rows"], answer["result"]) == (1, 41)

    def test_each_measure(self) -> None:
        table = CsvTable.parse("name;value\na;1\nb;2.5\nc;\n")
        assert table.measured("count", None) == 3
        assert table.measured("sum", "value") == 3.5
        assert table.measured("mean", "value") == 1.75
        assert table.measured("min", "value") == 1
        assert table.measured("max", "value") == 2.5
        nothing = table.where([Condition(column="name", operator="contains", value="Z")])
        assert (nothing.measured("count", None), nothing.measured("mean", "value")) == (0, None)

    def test_comparisons_of_numbers_and_of_text(self) -> None:
        table = CsvTable.parse("n,t\n9,b\n10,a\n")
        for operator, value, count in (("<", 10, 1), ("<=", "10", 2), ("!=", 9, 1), ("=", "9.0", 1), (">", 9.5, 1)):
            condition = Condition.model_validate({"column": "n", "operator": operator, "value": value})
            assert len(table.where([condition]).rows) == count
        assert [row["n"] for row in table.where([Condition(column="t", operator="<", value="b")]).rows] == ["10"]

    def test_odd_files(self) -> None:
        assert CsvTable.parse('a,b\n1\n2,3,4\n"x\ny",5\n').rows[0] == {"a": "1", "b": ""}
        with pytest.raises(TableError, match="empty"):
            CsvTable.parse("")

    @pytest.mark.parametrize(
        ("arguments", "problem"),
        [
            ({"measure": "sum"}, "sum needs a column"),
            ({"measure": "sum", "column": "price"}, "there is no column 'price'; the columns are: month, shop"),
            ({"measure": "sum", "column": "shop"}, "'Harbour', which is not a number"),
            ({"group_by": "city"}, "there is no column 'city'"),
            ({"where": [{"column": "city", "value": "x"}]}, "there is no column 'city'"),
            ({"measure": "median"}, "measure: Input should be 'count', 'sum', 'mean', 'min' or 'max'"),
            ({"where": [{"column": "shop", "operator": "~", "value": 1}]}, "where[0].operator: Input should be"),
        ],
    )
    async def test_a_question_that_cannot_be_answered_says_why(
        self, registry: ToolRegistry, arguments: dict[str, Any], problem: str
    ) -> None:
        result = await invoke(registry, "query_csv", {"path": SALES} | arguments)
        assert result.error is not None
        assert problem in result.error
