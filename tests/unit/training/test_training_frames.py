"""Questions put together from parts: the files keep their rules, and a key means one question."""

import random
from pathlib import Path

import pytest

from training import frames

KINDS, DOMAINS = frames.load()


def test_every_part_has_wordings_in_both_languages() -> None:
    for domain in DOMAINS:
        for part in (*domain.heads, *domain.tails):
            assert all(part.wordings[language] for language in frames.LANGUAGES), f"{domain.name}: {part.name}"
    assert all(len(kind.wordings[language]) >= 10 for kind in KINDS for language in frames.LANGUAGES)


def test_a_way_of_asking_has_one_place_for_what_is_asked() -> None:
    for kind in KINDS:
        assert all(frame.count("{do}") == 1 for some in kind.wordings.values() for frame in some), kind.name
    for domain in DOMAINS:
        if domain.of_facts:
            for head in domain.heads:
                assert all(frame.count("{e}") == 1 for some in head.wordings.values() for frame in some), head.name
        if domain.of_pairs:
            for head in domain.heads:
                assert all("{a}" in frame and "{b}" in frame for some in head.wordings.values() for frame in some), (
                    head.name
                )


def test_wordings_of_a_domain_belong_to_one_part_only() -> None:
    for domain in DOMAINS:
        for parts in (domain.heads, domain.tails):
            for language in frames.LANGUAGES:
                said = [text.casefold() for part in parts for text in part.wordings[language]]
                assert len(said) == len(set(said)), domain.name


@pytest.mark.parametrize("domain", DOMAINS, ids=lambda domain: domain.name)
def test_drawn_questions_are_look_alikes_with_filled_places(domain: frames.Domain) -> None:
    group = frames.draw(KINDS, domain, random.Random(5))
    keys = {question.key for question in group.questions}
    assert 4 <= len(keys) <= frames.QUESTIONS
    assert not any("{" in question.text for question in group.questions)
    # One step away from another: all parts but one are the same.
    for key in keys:
        parts = key.split("/")
        assert any(sum(a != b for a, b in zip(parts, other.split("/"), strict=True)) == 1 for other in keys - {key})


def test_a_relation_turned_round_is_another_question_unless_it_is_symmetric() -> None:
    people = next(domain for domain in DOMAINS if domain.name == "pairs_people")
    drawn = [frames.draw(KINDS, people, random.Random(seed)) for seed in range(40)]
    keys = {question.key for group in drawn for question in group.questions}
    turned = {key for key in keys if "/".join((*key.split("/")[:2], *reversed(key.split("/")[2:]))) in keys}
    assert any("/influenced/" in key for key in turned)
    assert not any("/met/" in key for key in turned)


def test_the_same_seed_draws_the_same_questions() -> None:
    first, second = (frames.groups(frames.DEVELOPMENT_DOMAINS, 3, seed=9) for _ in range(2))
    assert first == second


def test_held_out_domains_exist() -> None:
    assert {domain.name for domain in DOMAINS} >= frames.DEVELOPMENT_DOMAINS


def test_a_wording_before_any_name_is_named_with_its_line(tmp_path: Path) -> None:
    tmp_path.joinpath("broken.txt").write_text("no name yet\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"broken\.txt:1"):
        frames.load(tmp_path)
