"""From files to rows, and what is refused before anything is drawn."""

import io
import json

import pytest
from support.errors import raises

from sdpipe.batch.identity import seed_of
from sdpipe.batch.plan import Model, Plan, check_rows
from sdpipe.batch.rows import Rows
from sdpipe.errors import UsageError

MODEL = Model(
    {"defaults": {"width": 64, "height": 64}, "factor": 8, "layers": 2, "read_prompt": str},
    {"sha256": "ab" * 32},
)


def make_plan(source, **defaults):
    with Rows(source) as rows:
        plan = Plan(rows, MODEL, defaults, 7)
        return plan, [plan.job(i) for i in range(len(plan))]


def told(source, **defaults):
    plan, _ = make_plan(source, **defaults)
    return {number: str(error) for number, error in plan.bad}


ROWS = [
    {"prompt": "a, b", "seed": 3, "g": 2.5, "karras": True},
    {"prompt": 'two\nlines, "quoted"', "id": "0012", "steps": 4, "guidance_interval": [0.3, 5.0]},
    {"prompt": "café", "negative_prompt": "red", "seed": 2**64 - 1},
]


def test_each_kind_of_file_gives_the_same_jobs(tmp_path):
    import csv

    import pyarrow
    from pyarrow import parquet

    lines = "".join(json.dumps(row) + "\n\n" for row in ROWS)
    (tmp_path / "a.jsonl").write_text("\ufeff" + lines, encoding="utf-8")
    columns = list(dict.fromkeys(name for row in ROWS for name in row))
    with (tmp_path / "a.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for row in ROWS:
            interval = {"guidance_interval": "0.3,5"} if "guidance_interval" in row else {}
            writer.writerow({**row, **interval})
    columns_of = {name: [row.get(name) for row in ROWS] for name in columns}
    columns_of["seed"] = pyarrow.array(columns_of["seed"], pyarrow.uint64())
    parquet.write_table(pyarrow.table(columns_of), tmp_path / "a.parquet")
    found = {}
    for source in ("a.jsonl", "a.csv", "a.parquet", ROWS, io.BytesIO(lines.encode())):
        path = tmp_path / source if isinstance(source, str) else source
        plan, jobs = make_plan(path, seed=5)  # a row without one gets one from its number
        assert not plan.bad, source
        found[str(source)[:9]] = [(job.name, job.digest, job.settings) for job in jobs]
    first, *others = found.values()
    assert others == [first] * 4
    assert [settings.prompt for _, _, settings in first] == [row["prompt"] for row in ROWS]
    assert first[1][0] == "0012"


def test_n_makes_jobs_equal_rows_are_one_and_numbers_make_seeds():
    rows = [
        {"prompt": "cat", "seed": 5, "n": 3},
        {"prompt": "cat", "seed": 6, "g": 7.5},  # g is the default: the second of the first row
        {"prompt": "cat"},
        {"prompt": "cat"},
        {"prompt": "cat", "id": "x", "n": 2, "variation_strength": 0.5},
    ]
    plan, jobs = make_plan(rows, steps=3)
    assert [job.own["seed"] for job in jobs[:3]] == [5, 6, 7]
    assert len(plan) == 7
    assert jobs[3].own["seed"] != jobs[4].own["seed"]
    assert [job.name for job in jobs[5:]] == ["x-1", "x-2"]
    assert jobs[5].own["seed"] == jobs[6].own["seed"]
    assert jobs[6].own["variation_seed"] == jobs[5].own["variation_seed"] + 1
    again, _ = make_plan(rows, steps=3)
    assert again.digests.tolist() == plan.digests.tolist()
    other, _ = make_plan(rows, steps=4)
    assert not {*map(bytes, other.digests)} & {*map(bytes, plan.digests)}


def test_a_size_of_a_row_takes_the_place_of_the_default():
    _, jobs = make_plan([{"prompt": "a", "width": 72}, {"prompt": "a"}], dim=128)
    assert [job.settings.output_size for job in jobs] == [(72, 64), (128, 128)]


BAD = {
    "no json": "is no JSON",
    "[1]": "is no JSON object",
    '{"steps": 4}': "has no prompt",
    '{"prompt": "a", "stepz": 4}': "did you mean steps",
    '{"prompt": "a", "cfg_scale": 4}': "it is called g",
    '{"prompt": "a", "save_int": true}': "not for many images",
    '{"prompt": "(a"}': "closed",
    '{"prompt": 4}': "is not text",
    '{"prompt": "a", "steps": 0}': "out of range",
    '{"prompt": "a", "steps": 4.0}': "not a whole number",
    '{"prompt": "a", "karras": 1}': "not true or false",
    '{"prompt": "a", "seed": 18446744073709551615, "n": 2}': "out of range",
    '{"prompt": "a", "init_image": {"x": 1}}': "is not an image",
    '{"prompt": "a", "init_image": "none.png"}': "none.png",
    '{"prompt": "a", "clip_skip": 3}': "2 layers",
    '{"prompt": "a", "id": "../x"}': "name of a file",
    '{"prompt": "a", "id": "CON"}': "name of a file",
    '{"prompt": "a", "id": "nul.txt"}': "name of a file",
    '{"prompt": "a", "id": ".x"}': "name of a file",
    '{"prompt": "a", "id": "a\\u0007b"}': "name of a file",
    '{"prompt": "a", "id": "a\\ud800"}': "UTF-8",
    '{"prompt": "a", "id": ""}': "is no name",
    '{"prompt": "a", "id": true}': "is no name",
    json.dumps({"prompt": "a", "id": "x" * 300}): "300 bytes",
    '{"prompt": "a", "prompt_edits": ' + "[" * 3000: "is no JSON",
    '{"prompt": "' + "a" * 2**21 + '"}': "too long",
}


def test_every_bad_row_is_told_with_its_number(tmp_path):
    good = '{"prompt": "a", "steps": 4, "karras": true}'
    path = tmp_path / "jobs.jsonl"
    text = "\n".join([good, *BAD, good]) + "\n\xff\n"
    path.write_bytes(text.encode("latin-1"))
    found = told(path)
    assert found.keys() == {*range(2, len(BAD) + 2), len(BAD) + 3}
    for number, expected in enumerate(BAD.values(), 2):
        assert expected in found[number], found[number]
    with Rows(path) as rows, pytest.raises(UsageError, match=r"line 2: .*and 7 more"):
        check_rows(Plan(rows, MODEL, {}, 7))


def test_one_id_has_one_job():
    rows = [{"prompt": "a", "seed": 1, "id": "x"}, {"prompt": "a", "seed": 1, "id": "x"}]
    assert not told(rows)
    others = [*rows, {"prompt": "b", "seed": 1, "id": "x"}, {"prompt": "a", "seed": 1, "id": "X"}]
    found = told(others)
    assert found.keys() == {3, 4}
    assert "is that of row 1, which has other settings" in found[3]
    assert "same file's name" in found[4]


FILES = {
    "empty.jsonl": ("", "has no job"),
    "blank.jsonl": ("\n \n", "has no job"),
    "empty.csv": ("", "is empty"),
    "headless.csv": ("red apple,5\ngreen apple,6\n", "first line names the columns"),
    "unknown.csv": ("prompt,stepz\na,4\n", "did you mean steps"),
    "twice.csv": ("prompt,prompt\na,b\n", "is there twice"),
    "broken.csv": ('prompt\n"a\n', "is no CSV"),
    "utf-16.csv": ("\xff\xfep\0r\0o\0m\0p\0t\0\n\0a\0\n\0", "save it as UTF-8"),
    "utf-16.jsonl": ('\xff\xfe{\0"\0', "save it as UTF-8"),
    "latin.csv": ("prompt\ncaf\xe9\n", "UTF-8"),
    "jobs.parquet": ("PAR1", "is no Parquet file"),
    "semicolons.csv": ("prompt;seed\nred apple;1\n", "names the columns, with commas"),
    "jobs.txt": ("red apple\n", "is no file of jobs"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_cannot_be_read_is_refused(tmp_path, name):
    text, rule = FILES[name]
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=rule):
        make_plan(tmp_path / name)
    with raises(UsageError, value="none.csv", rule="No such file"):
        Rows("none.csv")


def test_whole_numbers_of_a_column_with_gaps_are_whole(tmp_path):
    import pyarrow
    from pyarrow import parquet

    columns = {"prompt": ["cat", "dog", "cat"], "seed": [3.0, None, float("nan")], "g": [2.5, 3, 4]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    plan, jobs = make_plan(tmp_path / "a.parquet")
    assert not plan.bad
    assert [job.own["seed"] for job in jobs] == [3, seed_of(7, 2), seed_of(7, 3)]


@pytest.mark.parametrize("source", [5, None, {"prompt": "cat"}])
def test_what_is_no_list_of_rows_is_refused(source):
    with raises(UsageError, value="jobs", rule="no list of rows"):
        Rows(source)


def test_a_row_of_csv_with_too_many_values_is_told(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,seed\na red, round apple,4\nb,5\n\nc,\n")
    assert "has 3 values" in told(tmp_path / "a.csv")[2]
    _, jobs = make_plan(tmp_path / "a.csv")
    assert [job.own["prompt"] for job in jobs] == ["b", "c"]


def test_a_file_that_changes_while_it_is_drawn_is_noticed(tmp_path):
    path = tmp_path / "jobs.jsonl"
    path.write_text('{"prompt": "cat", "seed": 1}\n')
    with Rows(path) as rows:
        plan = Plan(rows, MODEL, {}, 7)
        path.write_text('{"prompt": "dog", "seed": 1}\n')
        with raises(Exception, value="line 1", rule="has changed"):
            plan.job(0)
