# %% [markdown]
# # Scorecard
#
# Each line is one claim of a paper, the place where it stands, and a verdict with the evidence behind it. The
# verdict is computed from the results: the full profile where it was run, else the profile of this copy. [How
# to read this book](../how-to-read.md) says what the verdicts mean.

# %% tags=["parameters"]
profile = "quick"

# %% tags=["hide-input"]
from deepneighbors.report import findings, notebook

page, parameters = notebook.start_page(globals(), parameters=("profile",))
claims = findings.claims(parameters["profile"])

# %% tags=["hide-input"]
counts = claims.groupby(["paper", "verdict"]).size().rename("claims").reset_index()
page.grid(counts, name="tab-verdicts", caption="Verdicts so far.")

# %% tags=["hide-input"]
page.grid(
    claims[["claim", "place", "verdict", "evidence"]],
    name="tab-claims",
    caption="Claims, verdicts and the numbers behind them.",
)
