"""The rules of the verdict on small reports whose answer is plain to see."""

import math

import pytest
from ope_reports import estimate, full_report, rank_and_pool, small_report

from peira.evaluation.off_policy import estimators, guide
from peira.evaluation.off_policy.verdict import (
    MODEL_ALONE,
    baseline,
    judgement,
    judgements,
    most_trusted,
    portfolio_baseline,
    sections,
    shortlist,
    verdict,
)


def by_wdr(**values: tuple[float, float]) -> dict:
    """Candidates with (value, standard error) by `wdr` alone; the behaviour policy is worth 1.0."""
    return small_report(**{name: {"wdr": estimate(*of)} for name, of in values.items()})


def said(report: dict) -> str:
    return "\n".join(verdict(report))


def test_every_estimator_of_the_package_is_explained():
    assert set(guide.ESTIMATORS) == set(estimators.ESTIMATORS)
    assert set(guide.KINDS) == set(guide.Kind)


def test_the_interval_against_the_behaviour_policy_decides():
    report = by_wdr(up=(1.4, 0.1), down=(0.5, 0.1), both=(1.1, 0.1))
    assert judgements(report, "wdr") == {"up": "better", "both": "unclear", "down": "worse"}
    text = said(report)
    assert (
        "1 of 3 candidates is better than the policy that ran, worth 1.000: “up” (1.40; 1.20 to 1.60)" in text
    )
    assert "1 of 3 candidates is worse than the policy that ran" in text
    assert "“both” (1.10; 0.90 to 1.30)" in text


@pytest.mark.parametrize("edge", [[1.0, 2.0], [0.5, 1.0]])
def test_an_interval_that_touches_the_baseline_is_unclear(edge):
    report = by_wdr(a=(1.0, 0.1))
    report["candidates"]["a"]["estimates"]["wdr"]["interval"] = edge
    assert judgement(report, "a", "wdr") == "unclear"


def test_one_sided_intervals_can_only_show_what_they_bound():
    report = by_wdr(a=(1.5, 0.1), b=(0.2, 0.1))
    for name in "ab":
        report["candidates"][name]["estimates"]["wdr"]["interval"][1] = None
    assert judgements(report, "wdr") == {"a": "better", "b": "unclear"}
    assert "“a” (1.50; at least 1.3)" in said(report)


def test_nothing_is_said_about_the_worth_of_a_refused_estimate():
    report = small_report(good={"wdr": estimate(1.5, 0.1)}, lost={"wdr": estimate(None)})
    assert judgement(report, "lost", "wdr") == "not judged"
    text = said(report)
    assert "Nothing is said about “lost”, without an interval by wdr." in text
    assert "wdr refuses “lost”: effective sample size 1.7 of 3000 episodes is below 1 %." in text
    assert not any(word in text for word in ("“lost” is better", "“lost” (", "Try “lost”"))


def test_an_interval_from_which_no_limits_follow_shows_nothing():
    report = by_wdr(a=(1.5, 0.1), b=(1.4, 0.1))
    report["candidates"]["a"]["estimates"]["wdr"]["no_bound"] = "one episode carries 60 % of the weight"
    assert judgements(report, "wdr") == {"a": "doubtful", "b": "better"}
    text = said(report)
    assert "1 of 2 candidates is left open, because the interval is not to be believed: “a”" in text
    # It leads the ranking, and is not recommended all the same.
    assert shortlist(report, "wdr").names == ["b"]
    assert "Try “b”: ranked first by wdr, leaving out “a”." in text


def test_a_baseline_inside_an_interval_from_which_no_limits_follow_makes_it_no_gamble():
    report = by_wdr(a=(1.1, 0.1), b=(1.05, 0.1))
    assert judgements(report, "wdr") == {"a": "unclear", "b": "unclear"}
    for name in "ab":
        report["candidates"][name]["estimates"]["wdr"]["no_bound"] = "it does what the log never did"
    assert judgements(report, "wdr") == {"a": "doubtful", "b": "doubtful"}
    assert shortlist(report, "wdr") is None
    text = said(report)
    assert "2 of 2 candidates are left open, because the interval is not to be believed: “a”" in text
    assert "no candidate can be recommended" in text
    report["candidates"]["b"]["estimates"]["wdr"]["no_bound"] = None
    assert shortlist(report, "wdr").names == ["b"]
    assert "Try “b”: ranked first by wdr, leaving out “a”." in said(report)


def test_a_model_alone_is_believed_only_if_nothing_else_gives_an_interval():
    report = small_report(
        a={"dm": estimate(1.5, 0.01), "wdr": estimate(1.5, 0.4)},
        b={"dm": estimate(1.6, 0.01), "wdr": estimate(None)},
    )
    assert most_trusted(report) == "wdr"
    report["candidates"]["a"]["estimates"]["wdr"] = estimate(None)
    assert most_trusted(report) == "dm"
    assert "take what follows as a guess" in said(report)
    for candidate in report["candidates"].values():
        candidate["estimates"]["dm"] = estimate(None)
    assert most_trusted(report) is None
    assert "No estimator gives an interval for any candidate" in said(report)


def test_whom_to_believe_is_decided_rule_by_rule():
    def of(**estimates: dict) -> dict:
        return small_report(a=estimates, b={name: dict(of) for name, of in estimates.items()})

    # Doubly robust before weights alone, whatever the widths; blends after both.
    report = of(
        magic=estimate(1.5, 0.01), wpdis=estimate(1.5, 0.1), pdis=estimate(1.5, 0.1), dr=estimate(1.5, 0.2)
    )
    assert most_trusted(report) == "dr"
    # A smaller interval among those of one kind.
    assert most_trusted(of(dr=estimate(1.5, 0.2), wdr=estimate(1.5, 0.1))) == "wdr"
    # The order in which they were named where all else is equal.
    assert most_trusted(of(wdr=estimate(1.5, 0.1), dr=estimate(1.5, 0.1))) == "wdr"
    # Fewer warnings before the kind.
    report["candidates"]["b"]["estimates"]["dr"]["warnings"] = ["drift"]
    assert most_trusted(report) == "wpdis"
    # More intervals before fewer warnings.
    for name in ("magic", "wpdis", "pdis"):
        report["candidates"]["a"]["estimates"][name] = estimate(None)
    assert most_trusted(report) == "dr"
    # Limits that may be claimed before more intervals.
    for candidate in report["candidates"].values():
        candidate["estimates"]["dr"]["no_bound"] = "few episodes"
    assert most_trusted(report) == "wpdis"


def test_a_candidate_can_be_the_baseline():
    report = by_wdr(now=(2.0, 0.1), next=(2.6, 0.1), old=(1.5, 0.1))
    report["settings"]["baseline"] = "now"
    assert baseline(report, "wdr") == ("now", 2.0)
    assert judgements(report, "wdr") == {"next": "better", "old": "worse"}
    assert judgement(report, "now", "wdr") == "not judged"
    text = said(report)
    assert "1 of 2 candidates is better than “now”, worth 2" in text
    assert "the upper end of that policy’s own interval" not in text


def test_a_baseline_without_an_estimate_compares_nothing():
    report = small_report(now={"wdr": estimate(None)}, next={"wdr": estimate(2.6, 0.1)})
    report["settings"]["baseline"] = "now"
    assert judgements(report, "wdr") == {"next": "not judged"}
    assert "“now” has no estimate by wdr: nothing can be compared." in said(report)
    assert shortlist(report, "wdr") is None


def test_the_shortlist_maximises_the_sharpe_ratio_of_what_may_be_recommended():
    # Gains over 1: 1.0 throughout; spreads of the first 2, 3: 0.212, 0.4.
    report = by_wdr(a=(2.0, 0.1), b=(1.7, 0.1), c=(1.2, 0.3), d=(0.9, 0.3), e=(0.1, 0.1))
    chosen = shortlist(report, "wdr")
    assert chosen.names == ["a", "b"]
    assert (chosen.values, chosen.best, chosen.worst) == ("estimated", 2.0, 1.7)
    assert chosen.sharpe == pytest.approx(1.0 / (0.3 / math.sqrt(2)))
    text = said(report)
    assert "Try “a” and “b”: the first 2 by wdr." in text
    assert "SharpeRatio@2 is 4.714 (gain 1 over spread 0.2121)" in text


def test_the_shortlist_keeps_to_the_sizes_asked_for():
    report = by_wdr(a=(2.0, 0.1), b=(1.7, 0.1), c=(1.9, 0.1))
    report["settings"]["k"] = [1]
    assert shortlist(report, "wdr").names == ["a"]


def test_nothing_is_recommended_where_nothing_is_estimated_to_gain():
    report = by_wdr(a=(0.95, 0.1), b=(0.2, 0.1))
    assert shortlist(report, "wdr") is None
    assert "no candidate can be recommended over the policy that ran" in said(report)


def test_a_gamble_is_called_one():
    report = by_wdr(a=(1.1, 0.3))
    assert shortlist(report, "wdr").names == ["a"]
    assert "It is not shown to be better: a test is a gamble on the estimate." in said(report)
    report = by_wdr(a=(1.6, 0.1), b=(1.55, 0.6))
    assert "“b” may also turn out worse than the policy that ran: watch during the test." in said(report)


def test_copies_of_one_candidate_are_pointed_out():
    report = by_wdr(a=(2.0, 0.1), copy=(2.0, 0.1))
    assert shortlist(report, "wdr").sharpe == 100
    assert "these candidates are near copies of one another" in said(report)


def test_true_values_check_the_statements():
    report = by_wdr(a=(2.0, 0.1), b=(1.7, 0.1), c=(0.2, 0.1))
    for name, truth in {"a": 1.9, "b": 0.8, "c": 0.3}.items():
        report["candidates"][name]["truth"] = truth
    rank_and_pool(report)
    text = said(report)
    assert "True values are known: 2 of the 3 statements better or worse hold, not the one about “b”." in text
    assert "By true values the best of them is worth 1.9, the worst 0.8, the policy that ran 1.000." in text


def test_the_portfolios_own_baseline_is_found_from_their_gain():
    report = by_wdr(a=(2.0, 0.1), b=(1.7, 0.1))
    assert portfolio_baseline(report, "wdr") == 1.0
    # The true value of the behaviour policy was known to whoever made the portfolios, and is not in the report.
    for of in report["portfolio"]["wdr"].values():
        of["sharpe_numerator"] = of["best"] - 1.25
    assert portfolio_baseline(report, "wdr") == 1.25
    for of in report["portfolio"]["wdr"].values():
        of["sharpe_numerator"] = 0.0
    assert portfolio_baseline(report, "wdr") == 1.0


def test_candidates_that_only_beat_an_uncertain_mean_are_told_from_those_that_stand_clear():
    report = by_wdr(a=(1.5, 0.1), b=(1.25, 0.1))
    assert judgement(report, "b", "wdr") == "better"
    assert "“a” also stands clear of 1.100, the upper end of that policy’s own interval." in said(report)
    assert "None of the better ones stands clear" in said(by_wdr(b=(1.25, 0.1)))


def test_many_comparisons_come_with_what_chance_would_give():
    many = by_wdr(**{f"c{index}": (1.0 + index / 10, 0.1) for index in range(8)})
    assert "Were all 8 exactly as good as the policy that ran, 0.2 of them would" in said(many)
    assert "by chance" not in said(by_wdr(a=(1.5, 0.1)))
    # A doubtful one is called better by no chance.
    for name in ("c0", "c1", "c2"):
        many["candidates"][name]["estimates"]["wdr"]["no_bound"] = "few episodes"
    assert "Were all 5 exactly as good" in said(many)
    many["candidates"]["c3"]["estimates"]["wdr"]["no_bound"] = "few episodes"
    assert "by chance" not in said(many)


def test_estimators_that_contradict_each_other_are_named():
    report = small_report(a={"wdr": estimate(1.5, 0.1), "dm": estimate(0.5, 0.1)})
    assert "Estimators contradict each other on “a”: better by wdr, worse by dm." in said(report)


def test_each_finding_is_told_once_whoever_it_concerns():
    report = by_wdr(a=(1.5, 0.1), b=(1.4, 0.1), c=(1.3, 0.1))
    for name, size in {"a": 3, "b": 4, "c": 5}.items():
        text = f"the weights are worth {size} episodes"
        report["candidates"][name]["findings"] = [
            {"code": "few_effective_episodes", "severity": "warning", "text": text}
        ]
        report["candidates"][name]["estimates"]["wdr"]["warnings"] = [text]
    report["log"]["findings"] = [{"code": "truncated", "severity": "warning", "text": "3 episodes were cut"}]
    text = said(report)
    assert text.count("the weights are worth") == 1
    assert "“a”: the weights are worth 3 episodes. Much the same holds for “b” and “c”." in text
    assert text.count("The log: 3 episodes were cut.") == 1


def test_a_finding_that_refuses_estimates_is_not_told_again():
    reason = "the log does not say how likely its actions were"
    report = small_report(a={"wdr": estimate(None, refused=reason), "dm": estimate(1.5, 0.1)})
    report["log"]["findings"] = [{"code": "missing_propensity", "severity": "refusal", "text": reason}]
    assert said(report).count(reason) == 1


def test_a_report_without_a_flaw_says_so():
    assert "No estimate was refused, nothing was found wrong" in said(by_wdr(a=(1.5, 0.1)))


def test_intervals_that_leave_out_the_error_of_a_model_are_named():
    """Those of a model always, those of a blend where it warns that it is the model's."""

    def by(**warnings: list[str]) -> dict:
        return {name: estimate(1.5, 0.1, warnings=of) for name, of in warnings.items()}

    alone = [f"97% of the blend is {MODEL_ALONE}"]
    of_a = by(wdr=[], dm=[], magic=alone, switch=alone, dros=["shrinkage 3, chosen by SLOPE"])
    of_b = by(wdr=[], dm=[], magic=alone, switch=[], dros=[])
    of_c = of_b | {"magic": estimate(None)}
    text = said(small_report(a=of_a, b=of_b, c=of_c))
    assert "Intervals by dm, magic and switch (on “a”) leave out the error of what was fitted." in text
    assert "leave out the error" not in said(by_wdr(a=(1.5, 0.1)))


def test_missing_probability_is_told():
    report = by_wdr(a=(1.5, 0.1))
    report["candidates"]["a"]["distribution"] = full_report(1)["candidates"]["ppo_step_40k"]["distribution"]
    assert "probability is missing: “a” (3\N{NO-BREAK SPACE}%)" in said(report)


def test_the_verdict_is_the_sentences_of_its_sections():
    report = full_report()
    parts = sections(report)
    assert [part.heading for part in parts] == [
        "Compared with the policy that ran",
        "What to try next",
        "What not to trust",
    ]
    assert verdict(report) == [sentence for part in parts for sentence in part.sentences]
