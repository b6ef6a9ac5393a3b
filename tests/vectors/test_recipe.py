import pytest
from pydantic import ValidationError

from pastry.errors import PastryError
from pastry.vectors.modules import parse_lambda
from pastry.vectors.recipe import Recipe, SkillTerm, parse_recipe


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
def test_parse(text, terms):
    recipe = parse_recipe(text)
    assert [(term.name, term.version, term.lam) for term in recipe.skills] == terms
    assert recipe.target == text.split("+")[0]


def test_vectors_made_of_others():
    (a, b) = parse_recipe("t+consensus(a,b,c):0.5+ties(a,b)").skills
    assert (a.name, a.method, a.of, a.lam) == ("consensus(a,b,c)", "consensus", ["a", "b", "c"], 0.5)
    assert (b.method, b.of, b.lam) == ("ties", ["a", "b"], 1.0)
    with pytest.raises(PastryError, match="method 'average' is unknown; wanted one of sum, mean, consensus"):
        parse_recipe("t+average(a,b)")
    with pytest.raises(PastryError, match="names a skill without a name"):
        parse_recipe("t+mean(a,)")


def test_rules_for_module_groups():
    rules = "attention=1,mlp[0-3]=0.5~1,all=0"
    (a, b) = parse_recipe(f"t+a@best:{rules}+b:2").skills
    assert a == SkillTerm(name="a", version="best", lam=parse_lambda(rules, "here")) and b.lam == 2.0
    assert Recipe.model_validate_json(Recipe(target="t", skills=[a, b]).model_dump_json()).skills == [a, b]
    with pytest.raises(PastryError, match=r"recipe 't\+a:heads=1', skill a: cannot read the rule 'heads=1'"):
        parse_recipe("t+a:heads=1")


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
        ("t+a\n", "cannot be printed"),
        ("t+a:", "skill a: λ is '', wanted a finite number"),
        ("t+a:big", "skill a: λ is 'big'"),
        ("t+a:nan", "skill a: λ is 'nan'"),
        ("t+a:inf", "skill a: λ is 'inf'"),
        ("t+a:1e999", "skill a: λ is '1e999'"),
        ("t+a:1_0", "skill a: λ is '1_0'"),
    ],
)
def test_malformed_recipes_are_refused(text, message):
    with pytest.raises(PastryError, match=message):
        parse_recipe(text)


def test_lambda_must_be_finite_in_python_too():
    with pytest.raises(ValidationError):
        SkillTerm(name="a", lam=float("nan"))
