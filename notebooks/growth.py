# %% [markdown]
# # The cost of growth
#
# How time and memory grow with the training set, where one machine ends, and what many machines would gain.

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
from deepneighbors.report import growth, notebook

page, parameters = notebook.start_page(globals(), parameters=("profile",))
measured = growth.load()

# %% [markdown]
# ## One machine
#
# `benchmarks/growth.py` measures; this page shows what it wrote, whatever the profile of the book. The points are
# activations of MNIST's training digits in a trained network; beyond 60,000 they are made up, mixtures of two digits of one
# class, so that their neighbourhoods stay those of digits. Every size has a process of its own, whose greatest memory is
# counted, less what Python and its libraries hold.
#
# - *Exact search*: the 75 nearest of $N$ points of 128 numbers. *Inverted lists*: the same by faiss, which visits 16 of
#   $\sqrt N$ lists. Its recall is the share of the exact neighbours that it finds.
# - *DkNN credibility*: network, search in all four layers and p-values, for an image. Preparation passes $N$ images through
#   the network.
# - *NNIF, one layer*: the 50 most helpful and 50 most harmful of $N$ points of 64 numbers, and their ranks and distances.
#   Preparation is the Hessian.

# %% tags=["hide-input"]
page.figure(
    lambda canvas: growth.growth(canvas, measured.table),
    name="fig-growth",
    caption=f"Seconds a query and memory against the number of training points ({growth.machine(measured)}; {measured.provenance['config']['queries']} queries at once). Memory is drawn where it can be told from what any process holds.",
    alt="Two charts with logarithmic axes, one line each for exact search, inverted lists, DkNN credibility and NNIF. Times rise in nearly straight lines, those of NNIF and of exact search steeper at the end, that of inverted lists the slowest.",
    needs=[measured],
)

# %% tags=["hide-input"]
page.grid(
    growth.summary(measured.table),
    name="tab-growth",
    caption=f"The largest size that was measured of each method, and where its memory reaches that of the machine ({growth.machine(measured)}). The slope is the exponent of $N$ in the time of a query, from 10,000 points on.",
)

# %% [markdown]
# An exponent of 1 is time in proportion to the training set. Exact search is one matrix product and stays near it, but for the
# largest sizes; inverted lists visit a share of the points that falls as they grow, and pay for it in preparation. NNIF ranks
# the chosen points among all others, and for that sorts $N$ distances a query and layer; it also computes the gradients of all
# training points anew for each batch of queries whose scores fit `memory_gib`, so that beyond some 300,000 points its time
# grows faster: a search for the extremes of all queries in one pass would mend that.
#
# What ends a machine is memory, and DkNN is the first to end: its index holds the numbers of all layers, most of them of the
# first convolution, and when this was measured took more than twice that for a moment while it was filled, for a test for NaN
# that is now made in parts. Beyond that search in parts, on several machines, or with fewer numbers a layer.
#
# ## Many machines, on paper
#
# How long would the paper's whole grid of chapter 2 take on more than one GPU: three data sets, six attacks and the white
# box, both modes, all detectors, at the full profile? Here no job is run. The plan gives the tasks and what each needs
# (`deepneighbors plan --json`, as the engine of [](../scale.md) gets it). The cost of a task is the seconds that other nodes of
# the same stage, attack and detector took, in proportion to images, epochs and steps: behind recorded results where these keep
# them, else in `results/costs`, from a run on few images; where a data set has none, those of another serve. Each free
# machine takes the next task that is ready.

# %% tags=["hide-input"]
from deepneighbors.experiments import Run
from deepneighbors.profiles import SETTINGS

grid = [
    Run("nnif_detection", profile="full", dataset=name, device="cpu")
    for name in SETTINGS["nnif_detection"]["full"].published
]
page.grid(
    growth.on_machines(grid),
    name="tab-growth-machines",
    caption="The full grid of chapter 2 on so many equal machines, simulated. Costs are those of the machine that recorded them; the speed-up does not depend on how fast one is. *Busy* is the share of time in which a machine has work.",
)

# %% [markdown]
# The costs are of one core of a busy processor, and those of few images count what does not grow with them in full: they are
# upper ends, and a GPU does many times the work. Speed-up and busy share carry over as far as it speeds up all stages alike.
# What bounds them is the longest chain: a network must be trained before it is attacked, and an attack must end before its
# images are looked at.
