import json

import pytest

from sdpipe.loading.vocabulary import find_vocabulary


def test_all_names_or_those_with_some_words_are_listed(run):
    status, out, err = run("names")
    assert (status, out.splitlines(), err) == (0, list(find_vocabulary("emoji").names), "")
    assert run("names", "cat", "face") == (0, "cat face\n", "")
    status, out, _ = run("names", "black cat", "--json")
    assert (status, json.loads(out)) == (0, ["black cat"])


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["unicron"], "try 'unicorn'"),
        (["cats"], "try 'cat'"),
        (["tree", "cat"], "use fewer words"),
        (["xylophone"], "use fewer words"),
    ],
)
def test_words_without_a_name_are_refused_with_a_remedy(refused, words, remedy):
    assert remedy in refused(["names", *words])


def test_a_model_without_a_list_is_refused(run, refused, folder, monkeypatch):
    assert "has no list of names" in refused(["names", "--model", str(folder)], status=1)
    monkeypatch.setenv("SDPIPE_MODEL", str(folder))
    assert run("names")[0] == 1
