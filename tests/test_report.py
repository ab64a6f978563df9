"""Tables, figures and the notebook helper: what they write for known input, and what they refuse."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from deepneighbors import experiments, results
from deepneighbors.errors import InputError
from deepneighbors.report import comparison, figures, notebook, tables
from deepneighbors.report.comparison import row
from deepneighbors.report.settings import show_unlike

SPACE = "\N{NO-BREAK SPACE}"


def result_table(*, accuracy=0.98, n=500):
    names = {"experiment": "knn_attack", "network": "knn"}
    rows = [
        results.statistic_row(accuracy, n=n, ci=(accuracy - 0.01, accuracy + 0.01), metric="accuracy", attack="none")
        | names,
        results.statistic_row(3.117, n=470, ci=(3.0, 3.25), metric="mean_l2", attack="gradient", norm="l2") | names,
    ]
    return pd.DataFrame(rows)[list(results.COLUMNS)]


def lookup(**names):
    known = {
        "accuracy": SimpleNamespace(value=0.9574, kind="published", tolerance=0.005),
        "mean_l2": SimpleNamespace(value=6.565, kind="recalled", tolerance=None),
    }
    return known.get(names["metric"])


ROWS = [
    row("no attack", "accuracy", experiment="knn_attack", attack="none"),
    row("gradient", "mean_l2", experiment="knn_attack", attack="gradient", norm="l2"),
]


def compare(**options):
    options = {"full": None, "this": None, "lookup": lookup, "caption": "kNN.", "name": "tab-knn"} | options
    return comparison.compare(options.pop("rows", ROWS), **options)


def test_comparison_is_this_myst_table():
    table = compare(full=result_table(n=9250), this=result_table(accuracy=0.95), profile="quick")
    assert table.markdown().replace(SPACE, " ") == (
        "~~~{table} kNN.\n"
        ":name: tab-knn\n"
        "\n"
        "|  | quantity | paper | full | this run (quick) | difference |\n"
        "| --- | --- | ---: | ---: | ---: | ---: |\n"
        "| no attack | accuracy | 95.74 % | 98.00 % [97.00, 99.00] n = 9,250 | 95.0 % [94.0, 96.0] n = 500 "
        "| +2.26 points (beyond 0.5) |\n"
        "| gradient | mean L2 | 6.565† | 3.12 [3.00, 3.25] n = 470 | 3.12 [3.00, 3.25] n = 470 | -3.45 |\n"
        "~~~\n"
        "\n"
        "```{container} table-note\n"
        "† recalled from the paper, whose text could not be read here; check before citing.\n"
        "```\n"
    )


def test_full_that_was_not_run_is_shown_so_and_the_difference_is_of_this_run():
    first = compare(this=result_table(accuracy=0.96)).rows[0]
    assert first[3] == tables.NOT_RUN
    assert first[5].replace(SPACE, " ") == "+0.26 points (within 0.5)"


def test_nothing_run_has_no_difference():
    for line in compare().rows:
        assert line[3:] == [tables.NOT_RUN, tables.NOT_RUN, "-"]


def test_a_full_result_of_older_code_is_marked_with_a_note():
    table = compare(full=result_table(), outdated=frozenset({"knn_attack"}))
    assert table.rows[0][3].endswith("‡")
    assert any(note.startswith("‡") for note in table.notes)


def test_what_the_paper_does_not_have_is_a_hyphen():
    names = {"experiment": "knn_attack", "attack": "none"}
    rows = [row("paper's", "accuracy", **names), row("ours", "accuracy", in_paper=False, **names)]
    line = compare(rows=rows, this=result_table()).rows[1]
    assert (line[2], line[5]) == ("-", "-")


def test_a_table_without_any_number_of_the_paper_has_no_column_for_it():
    rows = [row("ours", "accuracy", experiment="knn_attack", attack="none", in_paper=False)]
    table = compare(rows=rows, this=result_table())
    assert list(table.header) == ["", "quantity", "full", "this run"]
    assert table.rows[0][2] == tables.NOT_RUN and len(table.rows[0]) == len(table.align) == 4


def test_a_run_at_full_that_shows_the_recorded_result_is_not_shown_twice():
    twice = compare(full=result_table(), this=result_table(), profile="full", outdated=frozenset({"knn_attack"}))
    assert "full" in twice.header and "this run (full)" not in twice.header and len(twice.rows[0]) == len(twice.header)
    assert list(compare(full=result_table(), this=result_table(accuracy=0.9), profile="full").header)[4] == "this run (full)"
    more = pd.concat([result_table(), result_table().assign(dataset="svhn")])
    named = {"experiment": "knn_attack", "attack": "none", "in_paper": False}
    rows = [row(name, "accuracy", dataset=name, **named) for name in ("mnist", "svhn")]
    header = compare(rows=rows, full=more, this=result_table(), profile="full", partial=True).header
    assert header[-1] == "full"  # of another data set this run has nothing
    assert list(compare(full=result_table(), this=result_table(), profile="quick").header)[4] == "this run (quick)"


def test_paper_names_replace_those_of_the_result():
    asked = []
    rows = [row("corrected", "accuracy", experiment="knn_attack", network="knn", paper={"network": "knn/released"})]
    compare(rows=rows, lookup=lambda **names: asked.append(names))
    assert asked == [{"experiment": "knn_attack", "network": "knn/released", "metric": "accuracy"}]


def test_a_setting_that_only_the_full_profile_has_is_not_run_here():
    frame = result_table().assign(setting="temperature=0.03")
    rows = [row("t = 0.03", "accuracy", experiment="knn_attack", attack="none", setting="temperature=0.03")]
    line = compare(rows=rows, full=frame, this=result_table()).rows[0]
    assert "98.0" in line[3] and line[4] == tables.NOT_RUN


def test_a_row_that_every_run_lacks_is_a_mistake_and_not_not_run():
    rows = [row("typing error", "accuracy", experiment="knn_attack", attack="nonw")]
    with pytest.raises(InputError, match="no result has .*attack='nonw'"):
        compare(rows=rows, full=result_table(), this=result_table())


def test_select_says_which_name_is_missing():
    table = pd.concat([result_table(), result_table().assign(network="knn/released")])
    with pytest.raises(InputError, match="2 results have .*; say also network$"):
        comparison.select(table, metric="accuracy", attack="none")
    assert comparison.select(table, metric="accuracy", network="knn")["value"] == 0.98


def test_unknown_names_and_kinds_are_refused():
    with pytest.raises(InputError, match="'atack'; allowed are experiment"):
        row("x", "accuracy", atack="none")
    with pytest.raises(InputError, match="kind is 'ratio'; allowed are percent, plain"):
        row("x", "accuracy", kind="ratio")


@pytest.mark.parametrize(
    ("value", "options", "text"),
    [
        (0.9574, {"as_percent": True, "n": 999}, "95.7"),
        (0.9574, {"as_percent": True, "n": 1000}, "95.74"),
        (0.0, {"as_percent": True}, "0.0"),
        (2.1, {}, "2.10"),
        (0.10371, {}, "0.104"),
        (0.0, {}, "0.00"),
        (1384.2, {}, "1,384"),
        (float("nan"), {}, "-"),
    ],
)
def test_numbers(value, options, text):
    assert tables.number(value, **options) == text


@pytest.mark.parametrize(
    ("metric", "expected"),
    [("accuracy", True), ("success", True), ("credibility_auc", True), ("mean_l2", False), ("mean_credibility", False)],
)
def test_which_metrics_are_percent(metric, expected):
    assert tables.percent(metric) is expected


def test_an_empty_sample_shows_its_n():
    assert tables.estimate(float("nan"), float("nan"), float("nan"), 0).replace(SPACE, " ") == "- n = 0"


def test_cells_cannot_break_the_table():
    table = tables.grid(pd.DataFrame({"a": ["x | y\nz"], "b": [0.5]}), caption="C `code`.", name="t")
    assert "| x \\| y z | 0.500 |" in table.markdown()
    assert "~~~{table} C `code`." in table.markdown()  # a fence of backticks could not hold the code


def test_html_of_a_table_escapes_and_knows_emphasis():
    table = tables.grid(pd.DataFrame({"a<b": ["*not run*"]}), caption="See {cite:t}`x`.", name="t")
    assert table.html() == (
        "<table><caption>See x.</caption><thead><tr><th>a&lt;b</th></tr></thead>"
        "<tbody><tr><td><em>not run</em></td></tr></tbody></table>"
    )


def test_uneven_rows_and_bad_labels_are_refused():
    with pytest.raises(InputError, match="has 1 cells; the header has 2"):
        tables.Table(["a", "b"], [["1"]], "C.", "t")
    with pytest.raises(InputError, match="'Tab 1' is not allowed"):
        tables.Table(["a"], [], "C.", "Tab 1")
    with pytest.raises(InputError, match="'t' has no caption"):
        tables.Table(["a"], [], " ", "t")


def draw_line(canvas):
    figure, axes = canvas()
    axes.plot([0, 1], [0, 1], label="a")
    axes.set_title("dark" if canvas.dark else "light")


def picture(draw=draw_line, **options):
    return figures.picture(draw, **({"name": "fig-line", "caption": "A line.", "alt": "A line that rises."} | options))


def test_a_figure_is_drawn_light_and_dark_and_the_same_each_time():
    first, second = picture(), picture()
    assert first.light.startswith("<?xml") and first.light != first.dark
    assert "#0173b2" in first.light and "#56b4e9" in first.dark
    assert (first.light, first.dark, first.png) == (second.light, second.dark, second.png)
    assert "background" not in first.light and 'style="fill: #ffffff"' not in first.light  # transparent


def draw_panels(canvas):
    """Titles, a legend and a bar of colours outside of the axes, and images that keep their shape."""
    figure, axes = canvas(2, 2, size=(6, 4))
    for axis in axes.flat[:3]:
        axis.plot([0, 1], [0, 1000], label="a long name")
    shown = axes[1][1].imshow([[0, 1, 2], [3, 4, 5]])
    figure.colorbar(shown, ax=axes[1][1])
    figure.suptitle("panels")
    figure.supxlabel("x of all")
    figure.supylabel("y of all")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center")


@pytest.mark.parametrize("draw", [draw_line, draw_panels])
def test_the_dark_figure_has_the_layout_that_it_would_find_by_itself(draw):
    alone, _ = figures._drawn(draw, "fig-line", dark=True)
    assert picture(draw).dark == alone.decode()


def test_a_notebook_shows_the_png_with_its_alt_text():
    data, metadata = picture()._repr_mimebundle_()
    assert picture().png.startswith(b"\x89PNG")
    assert metadata["image/png"]["alt"] == "A line that rises."
    assert 'alt="A line that rises."' in data["text/html"] and "<figcaption>A line.</figcaption>" in data["text/html"]


def test_figure_directive_holds_both_images_under_one_label():
    record = picture(alt='A "b": c # d')._repr_mimebundle_()[0][figures.MIME]
    text = figures.page_markdown(record, "figures/x-fig-line")
    assert text.count(":name: fig-line") == 1
    assert text.count(':alt: "A \\"b\\": c # d"') == 2
    for file in ("figures/x-fig-line-light.svg", "figures/x-fig-line-dark.svg", "figures/x-fig-line.png"):
        assert file in text


def test_figures_without_alt_caption_or_drawing_are_refused():
    with pytest.raises(InputError, match="'fig-line' has no alt text"):
        picture(alt=" ")
    with pytest.raises(InputError, match="'fig-line' has no caption"):
        picture(caption="")
    with pytest.raises(InputError, match="made no figure"):
        picture(draw=lambda canvas: None)


@pytest.mark.parametrize("dark", [False, True])
def test_palette_stands_out_from_the_page(dark):
    """Contrast of at least 3 with the page for the first four colours, and 4.5 for text (WCAG 2.1, 1.4.3 and 1.4.11)."""
    from matplotlib.colors import to_rgb

    def luminance(colour):
        parts = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
        return float(np.dot(parts, [0.2126, 0.7152, 0.0722]))

    def contrast(colour):
        low, high = sorted([luminance(colour), luminance("#121212" if dark else "#ffffff")])
        return (high + 0.05) / (low + 0.05)

    with figures._styled("x", dark=dark):
        canvas = figures.Canvas(dark=dark)
    assert contrast(canvas.ink) >= 4.5
    minimum = 4.5 if dark else 2.5  # the light palette is seaborn's, whose orange has 2.6
    assert all(contrast(colour) >= minimum for colour in canvas.palette[:4])


NAMESPACE = {"__name__": "__main__", "In": [""], "Out": {}, "_i1": "", "exit": 1, "quit": 1, "open": open, "np": np}


def parameters(**names):
    given = NAMESPACE | {"profile": "smoke", "seed": 0, "device": "cpu"} | names
    return notebook.read_parameters(given, ("profile", "seed", "device"))


def test_parameters_are_read_from_the_namespace():
    assert parameters(seed=3) == {"profile": "smoke", "seed": 3, "device": "cpu"}


@pytest.mark.parametrize("value", ["full", 3, 0.5, None, True, [1], {"a": 1}])
def test_an_unknown_parameter_is_refused_with_a_sentence(value):
    with pytest.raises(InputError, match="^unknown parameter 'profil'; this notebook takes profile, seed, device$"):
        parameters(profil=value)


def test_variables_of_later_cells_do_not_stop_a_second_start_by_hand():
    assert parameters(epsilon=0.2, page=notebook.Page())["profile"] == "smoke"


def test_a_notebook_must_define_its_parameters():
    with pytest.raises(InputError, match="defines no parameter 'seed'"):
        notebook.read_parameters({"profile": "smoke"}, ("profile", "seed"))


@pytest.mark.parametrize(("name", "value"), [("profile", "huge"), ("device", "abacus"), ("seed", "one")])
def test_a_wrong_value_is_refused_with_a_sentence(name, value, monkeypatch, tmp_path):
    monkeypatch.setenv("DEEPNEIGHBORS_ARTIFACTS", str(tmp_path))
    with pytest.raises(InputError, match=str(value)):
        notebook.start("knn_dknn_attack", NAMESPACE | {"profile": "smoke", "seed": 0, "device": "cpu"} | {name: value})


@pytest.fixture
def shown(monkeypatch):
    """What a notebook displays."""
    seen = []
    monkeypatch.setattr(notebook, "display", lambda data, **options: seen.append((data, options)))
    return seen


@pytest.fixture
def calls(monkeypatch, shown):
    """Stand-ins of the experiments: computing is counted, nothing is recorded."""
    counted = []
    found = results.Result("knn_attack", result_table(), {}, {"code_fingerprint": "now"})
    monkeypatch.setattr(experiments, "compute", lambda run, name: counted.append(name) or found)
    monkeypatch.setattr(experiments, "recorded", lambda chapter, name, profile="full", dataset=None: None)
    monkeypatch.setattr(experiments, "code_fingerprint", lambda chapter, name, profile="quick": "now")
    return counted


def chapter(*, recompute=False, **names):
    names = {"profile": "smoke", "device": "cpu"} | names
    return notebook.Chapter(experiments.Run(chapter="knn_dknn_attack", **names), recompute=recompute)


def test_full_is_not_run_on_a_laptop_unless_asked(calls):
    missing = chapter(profile="full").result("knn_attack")
    assert not missing and calls == []
    assert chapter(profile="full", recompute=True).result("knn_attack") and calls == ["knn_attack"]


def test_a_result_leaves_a_record_of_its_code(calls, shown):
    chapter().result("knn_attack")
    assert shown[-1][0][notebook.MIME] == {
        "chapter": "knn_dknn_attack",
        "experiment": "knn_attack",
        "profile": "smoke",
        "dataset": "mnist",
        "recorded": False,
        "fingerprint": "now",
    }


def test_an_unknown_experiment_is_refused_before_any_work(calls):
    with pytest.raises(InputError, match="no experiment 'knn_atack'; it has knn_attack"):
        chapter().result("knn_atack")
    assert calls == []


def test_compare_shows_a_recorded_result_of_older_code_with_its_mark(calls, shown, monkeypatch):
    old = results.Result("knn_attack", result_table(n=9250), {}, {"code_fingerprint": "old"})
    monkeypatch.setattr(experiments, "recorded", lambda chapter, name, profile="full", dataset=None: old)
    monkeypatch.setattr(notebook.values, "lookup", lambda *, paper, **names: lookup(**names))
    page = chapter()
    page.compare(page.result("knn_attack"), rows=[row("a", "accuracy", attack="none")], caption="C.", name="t")
    assert shown[-1][0].rows[0][3].endswith("‡")
    assert any(data[notebook.MIME].get("outdated") for data, _ in shown[:-1])


def test_compare_shows_the_recorded_result_of_each_data_set_that_rows_name(calls, shown, monkeypatch):
    kept = {"mnist": result_table(n=9250), "svhn": result_table(n=200).assign(dataset="svhn")}

    def recorded(chapter, name, profile="full", dataset=None):
        return results.Result(name, kept[dataset], {}, {"code_fingerprint": "now"}) if dataset in kept else None

    monkeypatch.setattr(experiments, "recorded", recorded)
    monkeypatch.setattr(notebook.values, "lookup", lambda *, paper, **names: None)
    page = chapter()
    names = {"experiment": "knn_attack", "attack": "none", "in_paper": False}
    rows = [row(name, "accuracy", dataset=name, **names) for name in ("mnist", "svhn", "cifar10")]
    page.compare(page.result("knn_attack"), rows=rows, caption="C.", name="t", partial=True)
    said = {line[0]: line[2] for line in shown[-1][0].rows}
    assert "9,250" in said["mnist"] and "200" in said["svhn"] and said["cifar10"] == tables.NOT_RUN


@pytest.mark.parametrize("other", [{}, {"epochs": 3}])
def test_other_settings_are_a_table_only_where_there_are_some(calls, shown, monkeypatch, other):
    config = vars(experiments.Run("knn_dknn_attack", profile="full", device="cpu").settings) | other
    kept = results.Result("knn_attack", result_table(), {}, {"code_fingerprint": "now", "config": config})
    monkeypatch.setattr(experiments, "recorded", lambda chapter, name, profile="full", dataset=None: kept)
    show_unlike(chapter(), name="t", caption="C.")
    rows = [data.rows for data, _ in shown if isinstance(data, tables.Table)]
    assert rows == ([[["epochs", "15", "3", "all"]]] if other else [])


def test_a_figure_without_its_result_says_so_and_is_not_drawn(calls, shown):
    def draw(canvas):
        raise AssertionError("drawn without a result")

    chapter(profile="full").figure(draw, name="f", caption="C.", alt="A.", needs=[notebook.NotRun("knn_attack")])
    assert shown[-1][0]["text/markdown"] == "*Not run: this figure needs the results of knn_attack.*"


def test_glue_takes_plain_values(shown):
    notebook.Page().glue("share", np.float32(0.5))
    data, options = shown[-1]
    assert data == {"application/papermill.record/text/plain": "0.5"}
    assert options["metadata"]["scrapbook"]["name"] == "share"
    with pytest.raises(InputError, match="glue 'share' is a ndarray; allowed are numbers and strings"):
        notebook.Page().glue("share", np.zeros(3))


def test_a_row_that_no_result_has_is_a_mistake_unless_results_are_partial():
    def made(partial):
        lines = [row("x", "accuracy", attack="other")]
        options = {"full": result_table(), "this": None, "lookup": lookup, "caption": "C.", "name": "t"}
        return comparison.compare(lines, **options, partial=partial)

    with pytest.raises(InputError, match="no result has attack='other'"):
        made(False)
    assert made(True).rows[0][3] == made(True).rows[0][4] == tables.NOT_RUN
