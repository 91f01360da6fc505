"""Descriptions of classes: forms of files, WordNet by a stand-in for nltk, and one error for each mistake."""

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
import yaml

from glip_adapt.core.knowledge import Knowledge, load_knowledge, wordnet_knowledge

PUBLIC = """
Penguin:
  clean_name: penguin , which is black
  def_wiki: A sea bird,
    which cannot fly.
  def_wn: null
  gpt3:
  - ' A bird that swims.'
  - ' A black bird.'
  - ' A bird.'
  - ' A fourth.'
  name: Penguin
  path_wn: sea_bird bird
'no':
  clean_name: 'no'
  def_wiki: null
  def_wn: a refusal
  gpt3: []
  name: 'no'
  path_wn: ''
"""
SENSES = {"dog": ["an animal", "a frank", "a device", "a fourth"], "box": ["a container"]}


@pytest.fixture
def written(tmp_path):
    """Return a function that writes a file, text or what becomes JSON, and returns its path."""

    def write(content, name="knowledge.yaml"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize("name", ["knowledge.yaml", "knowledge.json"])
def test_each_source_of_a_file_is_one_and_names_are_no_source(written, name):
    content = PUBLIC if name.endswith("yaml") else yaml.safe_load(PUBLIC)
    assert load_knowledge(written(content, name), ["no", "Penguin"]) == (
        Knowledge("def_wn", {"no": "a refusal"}),
        Knowledge("def_wiki", {"Penguin": "A sea bird, which cannot fly"}),
        Knowledge("gpt3", {"Penguin": "A bird that swims; A black bird; A bird"}),
        Knowledge("path_wn", {"Penguin": "sea bird bird"}),
    )


def test_a_file_may_have_one_text_or_a_list_per_class(written):
    (found,) = load_knowledge(written({"cat": "it purrs.", "dog": ["it barks.", "a pet"]}, "k.json"), ["cat", "dog"])
    assert found == Knowledge("description", {"cat": "it purrs", "dog": "it barks; a pet"})


def test_a_class_is_found_in_other_letter_case_after_its_own(written):
    path = written("b: small\nB: large\nRed_Box (old): a box\n")
    assert load_knowledge(path, ["B", "red box"])[0].texts == {"B": "large", "red box": "a box"}
    assert load_knowledge(path, ["b"])[0].texts == {"b": "small"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("cat: it purrs", "no entry for 'dog'; it has 1 others. Describe each class"),
        ("dog: {name: dog, def_wiki: null, gpt3: ['...']}", "'dog': has no description"),
        ("dog: {gpt3: [{a: b}]}", "'dog': expected text for 'gpt3', got"),
        ("dog: [[it barks]]", "'dog': expected text for 'description', got"),
        ('dog: "it \\a barks"', "'dog': 'description' holds control characters"),
        ('dog: {"\\e[31m": barks}', "'dog': '.x1b.31m' holds control characters"),
        ("dog: it \x07 barks", r"knowledge.yaml: cannot be read \(unacceptable character"),
        ("dog: [it barks", "knowledge.yaml: cannot be read .* Expected YAML or JSON"),
        ("dog: !!python/object/apply:os.getcwd []", "'dog': has no description"),
        ("a dog barks", "holds no class names"),
        ("- dog", "holds no class names"),
        ("", "holds no class names"),
        ("[" * 1000, "knowledge.yaml: cannot be read"),
    ],
)
def test_a_file_of_another_form_is_one_clear_error(written, content, message):
    with pytest.raises(ValueError, match=message):
        load_knowledge(written(content), ["dog"])


def test_a_number_in_json_is_no_text(written):
    with pytest.raises(ValueError, match="expected text for 'wiki', got '3'"):
        load_knowledge(written({"dog": {"wiki": 3}}, "k.json"), ["dog"])


def test_a_missing_file_and_one_in_another_encoding_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No file of descriptions at .*absent.yaml"):
        load_knowledge(tmp_path / "absent.yaml", ["dog"])
    (tmp_path / "latin.yaml").write_bytes(b"dog: na\xefve")
    with pytest.raises(ValueError, match=r"latin.yaml: cannot be read .*utf-8"):
        load_knowledge(tmp_path / "latin.yaml", ["dog"])


def test_three_senses_of_wordnet_are_three_sources_and_the_last_word_stands_in():
    found = wordnet_knowledge(["dog", "red box", "xyz"], lambda name: SENSES.get(name, []))
    assert found == (
        Knowledge("wordnet 1", {"dog": "an animal", "red box": "a container"}),
        Knowledge("wordnet 2", {"dog": "a frank"}),
        Knowledge("wordnet 3", {"dog": "a device"}),
    )
    with pytest.raises(ValueError, match="WordNet has none of 'xyz', 'red xyz'"):
        wordnet_knowledge(["xyz", "red xyz"], lambda name: SENSES.get(name, []))


def test_wordnet_is_asked_for_nouns_by_nltk_and_what_is_missing_is_named(monkeypatch):
    asked = []

    def synsets(word, pos):
        asked.append((word, pos))
        return [SimpleNamespace(definition=lambda: "a fish")]

    corpus = ModuleType("nltk.corpus")
    corpus.wordnet = SimpleNamespace(synsets=synsets)
    monkeypatch.setitem(sys.modules, "nltk", ModuleType("nltk"))
    monkeypatch.setitem(sys.modules, "nltk.corpus", corpus)
    assert load_knowledge("wordnet", ["great_white shark (fish)"])[0].texts == {"great_white shark (fish)": "a fish"}
    assert asked == [("great_white_shark", "n")]

    def missing(word, pos):
        raise LookupError("a page of text")

    corpus.wordnet = SimpleNamespace(synsets=missing)
    with pytest.raises(FileNotFoundError, match=r"python -m nltk\.downloader wordnet"):
        load_knowledge("wordnet", ["dog"])
    monkeypatch.setitem(sys.modules, "nltk", None)
    monkeypatch.setitem(sys.modules, "nltk.corpus", None)
    with pytest.raises(RuntimeError, match=r"pip install 'glip-adapt\[phrases\]'"):
        load_knowledge("wordnet", ["dog"])
