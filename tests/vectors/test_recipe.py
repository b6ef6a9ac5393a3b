import pytest
from pydantic import ValidationError

from pastry.errors import PastryError
from pastry.vectors.recipe import Recipe, SkillTerm, format_recipe, parse_recipe


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("target", []),
        ("target+skill", [("skill", None, 1.0)]),
        ("target+skill@best:0.8", [("skill", "best", 0.8)]),
        ("target+a@3:0.5+b:0.3", [("a", "3", 0.5), ("b", None, 0.3)]),
        ("org/model-1.5+a:-0.25+a@2", [("a", None, -0.25), ("a", "2", 1.0)]),
        ("t+a:0+b:1e-07+c:1e20", [("a", None, 0.0), ("b", None, 1e-7), ("c", None, 1e20)]),
    ],
)
def test_round_trip(text, terms):
    recipe = parse_recipe(text)
    assert [(term.name, term.version, term.lam) for term in recipe.skills] == terms
    assert recipe.target == text.split("+")[0]
    assert format_recipe(recipe) == text


def test_formatting_drops_what_is_the_default():
    assert format_recipe(parse_recipe("t+a:1.0+b@x:2.50")) == "t+a+b@x:2.5"
    lam = 0.1 + 0.2
    assert parse_recipe(format_recipe(Recipe(target="t", skills=[SkillTerm(name="a", lam=lam)]))).skills[0].lam == lam


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is not a target's name"),
        ("+a", "'' is not a target's name"),
        ("a b+c", "'a b' is not a target's name"),
        ("t@1+a", "'t@1' is not a target's name"),
        ("t:0.5", "'t:0.5' is not a target's name"),
        ("t+", "cannot read the skill ''"),
        ("t++a", "cannot read the skill ''"),
        ("t+a@", "cannot read the skill 'a@'"),
        ("t+:0.5", "cannot read the skill ':0.5'"),
        ("t+a:0.5:1", "cannot read the skill 'a:0.5:1'"),
        ("t+a:0.5@x", "cannot read the skill"),
        ("t+a\n", "cannot read the skill"),
        ("t+a:", "λ of a is '', wanted a finite number"),
        ("t+a:big", "λ of a is 'big'"),
        ("t+a:nan", "λ of a is 'nan'"),
        ("t+a:inf", "λ of a is 'inf'"),
        ("t+a:1e999", "λ of a is '1e999'"),
        ("t+a:1_0", "λ of a is '1_0'"),
    ],
)
def test_malformed_recipes_are_refused(text, message):
    with pytest.raises(PastryError, match=message):
        parse_recipe(text)


def test_lambda_must_be_finite_in_python_too():
    with pytest.raises(ValidationError):
        SkillTerm(name="a", lam=float("nan"))
