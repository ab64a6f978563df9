# %% [markdown]
# # Scorecard
#
# Each line is one claim of a paper, the place where it stands, and a verdict with the evidence behind it. The
# verdict is computed from the results: the full profile where it was run, else the profile of this copy. [How
# to read this book](../how-to-read.md) says what the verdicts mean.

# %% tags=["remove-cell"]
# In Colab the repository is not there yet: fetch it, with its data and recorded results.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("deepneighbors") is None:
    source = ("https://github.com/deep-neighbors/deep-neighbors-under-attack", "book")
    subprocess.run(["git", "clone", "-q", "--depth", "1", *source], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "-e", "book"], check=True)
    sys.path.insert(0, "book/src")
    del source

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
