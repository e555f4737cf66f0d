"""Where the figures of the documents come from: what is found in a text, and what each is traced to.

A figure stands in a block that a command writes from records, which is written again here and compared, or in the words of
a `Trace`, which says where it is from. A trace to a record or to the code is computed; the others must say so in the text.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from configparser import ConfigParser
from dataclasses import dataclass
from inspect import signature

from fromage.ablation.variants import variants
from fromage.core.metrics import bootstrap
from fromage.core.paper import PAPER_CLAIMS, answer_claim
from fromage.core.presets import MINI, PAPER, change
from fromage.core.records import RunRecord
from fromage.core.reporting import MARKERS, Report, claim_frame, markdown_table, results_table
from fromage.core.reruns import command_of, given_parameters
from fromage.networks.alignment import MOST_PAIRS
from house_rules import ROOT
from safetensors import safe_open

UNIT = (r"%|[kMGT]B\b|Gbit|s\b|(?:seconds?|minutes?|hours?|days?|million|billion|M|B|times|points?|px|cores?|steps?|pairs?|images?|"
        r"pictures?|stories|dialogues?|tokens?|values?|weights?|items?|captions?|questions?|requests?|rows?|examples?|claims?|"
        r"exact|refused)\b")
NUMBER = r"(?<![\w.,/:-])[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:e-?\d+)?(?![\w/]|\.\d|-[A-Za-z])"
WORDS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10, "twelve": 12,
         "twenty": 20, "half": 0.5, "tenth": 0.1}
COMPUTED, PUBLISHER, PAPER_SAYS, NAME = "computed", "said", "paper", "a name, a version or a licence"


@dataclass(frozen=True)
class Trace:
    """Words of a document with their figures, and where these are from: a reason, or numbers that are computed."""
    document: str
    words: str
    origin: str | Callable[[Mapping[str, RunRecord]], Iterable[float]]


def seconds(records: Mapping[str, RunRecord]) -> list[float]:
    """Of the training, and the cores."""
    return [records["train-mini"].seconds, records["train-mini"].machine["cores"]]


def efforts(records: Mapping[str, RunRecord]) -> list[float]:
    """The sweep's steps and rate against the preset's, and its longest schedule against the others."""
    config, variants_run = records["ablate-full"].config["config"]["training"], records["ablate-full"].metrics["variants"]
    changed = variants(change(MINI, steps=config["steps"]))
    longest = max(changed[name].get("steps", config["steps"]) for name in variants_run)
    return [config["steps"] / MINI.training.steps, config["learning_rate"] / MINI.training.learning_rate, longest / config["steps"]]


def fits(name: str) -> Callable[[Mapping[str, RunRecord]], list[float]]:
    """GiB that a language model's training is projected to take in each size of a GPU in which it fits."""
    def numbers(records: Mapping[str, RunRecord]) -> list[float]:
        row = next(line for line in records["costs"].metrics["fits"] if line["language model"] == name)
        return [float(found) for found in re.findall(r"\(([\d.]+) GiB\)", " ".join(row.values()))]
    return numbers


def footprints(record: str) -> Callable[[Mapping[str, RunRecord]], list[float]]:
    """The largest resident sizes that were measured in a record."""
    def numbers(records: Mapping[str, RunRecord]) -> list[float]:
        peaks: dict[str, float] = {}
        for line in records[record].metrics["scale"]["memory"]:
            peaks[line["model"]] = max(peaks.get(line["model"], 0.0), line["peak GiB"])
        return [*peaks.values()]
    return numbers


def speed_ups(records: Mapping[str, RunRecord]) -> list[float]:
    """The cores, and how much faster than the published procedure each work is, in float32 and bfloat16; of replies also how many."""
    record = records["benchmark-modern"]
    found = {(line["work"], line["precision"]): line["plain / ours"] for line in record.metrics["scale"]["speeds"]}
    step, reply, replies, candidates = ([found[work, precision] for precision in ("float32", "bfloat16")] for work in (
        "training from features", "generation, 1 prompts", "generation, 16 prompts", "scoring candidates"))
    return [record.machine["cores"], *step, *reply, 16, *replies, *candidates]


def galleries(records: Mapping[str, RunRecord]) -> list[float]:
    """Of the largest gallery: its millions, seconds of one query, queries that were asked together and theirs, GiB,
    seconds of IVF, how many best were looked for, and the share of them that the other methods find (%)."""
    record = records["benchmark-galleries"]
    metrics = record.metrics["scale"]
    together, alone, *others = metrics["galleries"][-5:]
    peak = max(line["peak GiB"] for line in metrics["gallery memory"])
    return [max(record.config["gallery_rows"]) / 1e6, alone["seconds"], together["a second"] * together["seconds"], together["seconds"],
            peak, others[0]["seconds"], 10 * others[0]["recall@10"], *(100 * line["recall@10"] for line in others[1:])]


def knowledge(*systems: str, record: str = "eval_knowledge-emoji") -> Callable[[Mapping[str, RunRecord]], list[float]]:
    """R@10 of own queries and of definitions by some systems."""
    def numbers(records: Mapping[str, RunRecord]) -> list[float]:
        metrics = records[record].metrics
        return [round(metrics[group][system]["R@10"]["value"]) for system in systems for group in ("own queries", "definitions")]
    return numbers


def unseen_emoji(records: Mapping[str, RunRecord]) -> list[float]:
    """Of held-out names: BLEU-4 of captions, how many there are, R@10, and the ten."""
    metrics = records["train-emoji"].metrics
    found = metrics["text_to_image.R@10"]
    return [round(metrics["bleu4"]["value"], 1), found["n_total"], 10, round(found["value"])]


def beside_mini(records: Mapping[str, RunRecord]) -> list[float]:
    """How many held-out captions the miniature has; their R@1 by `smol`, its ceiling, and BLEU-4; both by `mini`."""
    found = [records[f"train-{preset}"].metrics for preset in ("smol", "mini")]
    first, bleu4 = ([own[name]["value"] for own in found] for name in ("text_to_image.R@1", "bleu4"))
    ceiling = found[0]["grounded"]["caption to image: R@1 of the ceiling"]["ceiling"]
    return [found[0]["bleu4"]["n_total"], *(round(value, 1) for value in (first[0], ceiling, bleu4[0], first[1], bleu4[1]))]


def oldest_python(records: Mapping[str, RunRecord]) -> list[float]:
    """Of settings.ini."""
    settings = ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini")
    return [float(settings["DEFAULT"]["min_python"])]


def millions(records: Mapping[str, RunRecord]) -> list[float]:
    """Weights of the shipped language model."""
    with safe_open(ROOT / "data/mini/lm/model.safetensors", "np") as file:
        return [sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys()) / 1e6]


def trained(records: Mapping[str, RunRecord]) -> list[float]:
    """Millions of values of three maps (k = 1), [RET] and a temperature beside OPT-6.7B and ViT-L/14; model.model builds them."""
    width, seen, q = 4096, 1024, PAPER.grounding.retrieval_dim
    return [((seen + 1) * width + (width + 1) * q + (seen + 1) * q + width + 1) / 1e6]


README, DATA = "README.md", "data/README.md"
TRACES = (
    Trace(README, "arXiv 2301.13823", NAME),
    Trace(README, "Python 3.11 or newer", oldest_python),
    Trace(README, "5.5 million values", trained),
    Trace(README, "95 % bootstrap", lambda _: [100 * signature(bootstrap).parameters["level"].default]),
    Trace(README, "two million weights", millions),
    Trace(README, "a tenth of the preset's steps at three times its rate, frozen and tuned for four times", efforts),
    Trace(README, "Apache 2.0", NAME),
    Trace(README, "OpenMoji (CC BY-SA 4.0)", NAME),
    Trace(README, "best of 1,923 drawings", lambda records: [records["eval_knowledge-emoji"].metrics["pictures"]]),
    Trace(README, "for 83 % of our own questions and for 77 % of a lexicographer's definitions; words alone find it for 11 % and "
                  "16 %", knowledge("maps on the language model", "tf-idf of names and further names")),
    Trace(README, "found for 23 % and 9 %", knowledge("context: alone")),
    Trace(README, "(85 % and 80 %)", knowledge("the model's own states")),
    Trace(README, "finds 70 % and 60 %", knowledge("the checkpoint at [RET]", record="eval_knowledge-checkpoint")),
    Trace(README, "51 % and 48 % without that context",
          knowledge("the checkpoint at [RET], the text alone", record="eval_knowledge-checkpoint")),
    Trace(README, "(BLEU-4 of its captions: 0.2 %), and among 388 such drawings a name's own is one of the ten best for 20 %", unseen_emoji),
    Trace(README, "1,000 held-out captions 54.2 % find their picture first by `smol` (65.4 % could: the others leave too much out), "
                  "and those that it writes have a BLEU-4 of 28.6 % "
                  "(`mini`: 60.4 % and 27.1 %)", beside_mini),
    Trace(README, "a processor of two cores, beside the published procedure in the same precision, float32 and bfloat16 (`make modern`): "
                  "a training step from features is\n4.1 and 3.4 times as fast, a reply 6.2 and 4.8 times, 16 replies together 56 and 30 times, "
                  "the candidates of a dialogue 17 and 7.9 times", speed_ups),
    Trace(README, "took 5.40 GiB, OPT-6.7B 15.7 GiB", footprints("benchmark-scale")),
    Trace(README, "Among 2.6 million images the exact search answers one query in 0.91 s and 64 together in 2.34 s, in 2.44 GiB;\n"
                  "`-p search ivf` answers in 0.012 s with all of the ten best, `ivfpq` and `hnsw` with 91 % and 98 %", galleries),
    Trace(README, "they took 2.66, 3.62 and 6.80 GiB", footprints("benchmark-modern")),
    Trace(README, "| 8 GB | 24 GB | 48 GB | 80 GB |", "Projected"),
    Trace(README, "| OPT-1.3B | bf16, 6.3 GiB | bf16, 6.3 GiB | bf16, 6.3 GiB | bf16, 6.3 GiB |", fits("opt-1.3b")),
    Trace(README, "| OPT-6.7B | nf4, 7.9 GiB | bf16, 19.9 GiB | bf16, 19.9 GiB | bf16, 19.9 GiB |", fits("opt-6.7b")),
    Trace(README, "| OPT-13B | – | int8, 17.9 GiB | bf16, 34.7 GiB | bf16, 34.7 GiB |", fits("opt-13b")),
    Trace(README, "| OPT-30B | – | nf4, 23.7 GiB | int8, 36.7 GiB | bf16, 72.8 GiB |", fits("opt-30b")),
    Trace(README, "| OPT-66B | – | – | nf4, 46.3 GiB | int8, 74.9 GiB |", fits("opt-66b")),
    Trace(DATA, "VisDial 1.0", NAME),
    Trace(DATA, "Apache 2.0", NAME),
    Trace(DATA, "CC BY 4.0", NAME),
    Trace(DATA, "CC BY-SA 4.0", NAME),
    Trace(DATA, "32 rows of which two were dead: the shard's 30 examples", "Measured"),
    Trace(DATA, "3.3 million for training; 2.9 million", PAPER_SAYS),
    Trace(DATA, "40 to 70 % later", "its users"),
    Trace(DATA, "16 cores and 2 Gbit/s, at 850 pictures a second", PUBLISHER),
    Trace(DATA, "first shard of 10,000 rows", COMPUTED),
    Trace(DATA, "times 332 | computed: 3.32 million rows / 10,000", COMPUTED),
    Trace(DATA, "6.8 GB of float16 for ViT-L/14, 5.1 GB for ViT-B/32", COMPUTED),
    Trace(DATA, "rows × width × 2 bytes", COMPUTED),
    Trace(DATA, "the first 200 captions", lambda _: [MOST_PAIRS]),
    Trace(DATA, "4,990 stories", PAPER_SAYS),
    Trace(DATA, "331 MB", "lists it"),
    Trace(DATA, "2,064 dialogues", PAPER_SAYS),
    Trace(DATA, "| 13.3 GB |", "computed below"),
    Trace(DATA, "| 1.7 GB |", "computed below"),
    Trace(DATA, "| 0.25 GB |", "computed below"),
    Trace(DATA, "| 0.6 GB |", "computed below"),
    Trace(DATA, "6.7 B model", NAME),
    Trace(DATA, "827 s on two cores", seconds),
    Trace(DATA, "| 8 GB | 24 GB | 80 GB |", "What fits where"),
    Trace(DATA, "tower 1.7 GB", COMPUTED),
    Trace(DATA, "weights 0.25 GB, activations 1.5 GB at 8,192 tokens", COMPUTED),
    Trace(DATA, "weights 13.3 GB, activations 21.6 GB at 8,192 tokens", COMPUTED),
    Trace(DATA, "weights 13.3 GB, activations 2.7 GB", COMPUTED),
    Trace(DATA, "weights 13.3 GB and 1.7 GB", COMPUTED),
    Trace(DATA, "one A6000 of 48 GB, 24 hours", PAPER_SAYS),
    Trace(DATA, "its gallery is 3 GB", PAPER_SAYS),
)


def prose(text: str) -> str:
    """A document without what states nothing: blocks of code, code in a line, addresses of links, comments; as long as before."""
    for pattern in (r"^```.*?^```", r"<!--.*?-->", r"`[^`\n]*`", r"(?<=\])\([^)\n]*\)"):
        text = re.sub(pattern, lambda match: re.sub(r"[^\n]", " ", match[0]), text, flags=re.S | re.M)
    return text


def generated(text: str) -> re.Match | None:
    """The block between the markers of a document."""
    return re.search(rf"{MARKERS[0]}\n\n(.*?)\n{MARKERS[1]}", text, re.S)


def figures_of(text: str) -> list[tuple[int, str]]:
    """Place and text of every figure: a number with a unit, with a decimal point, or in a table; a number's word with a unit."""
    clean = prose(text)
    found = [(match.start(), match[0], clean[match.end():match.end() + 12])
             for match in re.finditer(rf"{NUMBER}|\b(?:{'|'.join(WORDS)})\b", clean)]
    unit = re.compile(rf"[\s-]?(?:{UNIT}|bootstrap)")
    measure = re.compile(r"[\s-]?(?:million|billion|times|seconds?|minutes?|hours?|cores?|of the preset)\b")
    return [(place, figure) for place, figure, behind in found if (
        measure.match(behind) if figure in WORDS else
        unit.match(behind) or "." in figure or clean[clean.rfind("\n", 0, place) + 1] == "|")]


def untraced(document: str, text: str) -> list[str]:
    """Figures that stand neither in a generated block nor in the words of a trace."""
    block = generated(text)
    spans = [block.span()] if block else []
    for trace in TRACES:
        if trace.document == document:
            pattern = r"\s+".join(map(re.escape, trace.words.split()))
            spans += [match.span() for match in re.finditer(pattern, text)]
    return [f"{document}: {figure} in '{' '.join(text[max(0, place - 40):place + 30].split())}' is traced to nothing"
            for place, figure in figures_of(text) if not any(start <= place < end for start, end in spans)]


def shown_values(words: str) -> list[tuple[float, int]]:
    """The numbers in some words, and their decimals; a number's word has those that it needs."""
    found = re.findall(rf"(?<![\w-])(\d[\d,]*(?:\.\d+)?)(?![\w-])|\b({'|'.join(WORDS)})\b", words)
    return [(float(digits.replace(",", "")), len(digits.partition(".")[2])) if digits else
            (WORDS[word], 0 if WORDS[word] >= 1 else 1) for digits, word in found]


def unfounded(document: str, text: str, records: Mapping[str, RunRecord]) -> list[str]:
    """Traces whose words are gone, whose reason is not in their section, or whose numbers are others."""
    found = []
    for trace in (each for each in TRACES if each.document == document):
        pattern = r"\s+".join(map(re.escape, trace.words.split()))
        sections = [each for each in re.split(r"^(?=#)", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M), flags=re.M)
                    if re.search(pattern, each)]
        if not sections:
            found.append(f"{document}: '{trace.words}' is traced and is not there")
        elif isinstance(trace.origin, str):
            if trace.origin != NAME and not all(trace.origin in each for each in sections):
                found.append(f"{document}: nothing near '{trace.words}' says '{trace.origin}'")
        else:
            shown, values = shown_values(trace.words), list(trace.origin(records))
            if len(shown) != len(values) or any(round(value, decimals) != told for (told, decimals), value in zip(shown, values)):
                found.append(f"{document}: '{trace.words}' is {', '.join(f'{value:g}' for value in values)}")
    return found


def unlike_records(readme: str, claims: str, records: Mapping[str, RunRecord]) -> list[str]:
    """Blocks that are not what their command writes from the records: the README's table, the page of claims."""
    reports = [Report(name, record) for name, record in records.items()]
    answers = [answer_claim(claim, records) for claim in PAPER_CLAIMS]
    told = records["claims"]
    page = (f"# What remains of the paper's claims in the miniature world\n\n**{told.finding}**\n\n"
            f"*What this does not show*: {told.limits}.\n\n{markdown_table(claim_frame(answers))}")
    wrong = [] if generated(readme) and generated(readme)[1] == results_table(reports) else ["README.md: the table of results"]
    noted = {f"{each.claim.place}: {each.claim.text}": each.answer for each in answers}
    wrong += [] if claims == page else ["reports/claims.md"]
    wrong += [] if noted == {name: each["answer"] for name, each in told.metrics["claims"].items()} else ["reports/claims.json"]
    return [f"{name} is not what the records say; `make -B reports/claims.html`, `make reports`" for name in wrong]


def unreproducible(name: str, record: RunRecord) -> list[str]:
    """What a record lacks of its way back: a commit, a command whose notebook and files are here."""
    found = [] if re.fullmatch(r"[0-9a-f]{40}", record.git.get("commit") or "") else [f"{name}: no commit"]
    if f"papermill nbs/{record.run}.ipynb" not in (record.command or command_of(record.run, record.config)):
        found.append(f"{name}: no command")
    found += [f"{name}: {value} of its command is not here" for value in given_parameters(record.run, record.config).values()
              if str(value).startswith(("data/studies/", "studies/", "nbs/")) and not (ROOT / value).exists()]
    return found
