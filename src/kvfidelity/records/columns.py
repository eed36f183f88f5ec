"""The columns of every artifact: name, dtype, unit, meaning and the stage that writes them.

They are declared here once. Frames are built with them, and docs/results.md and the report's
glossary are made of them. Tables of the analysis are in `analysis.columns`.
"""

from __future__ import annotations

from typing import Annotated

import polars as pl

from kvfidelity.records.declaration import Dtype, at_end, schema

SPANS = pl.List(pl.Struct({"start": pl.Int32, "stop": pl.Int32}))
BY_HEAD = pl.List(pl.List(pl.Float32))
POSITION_SPANS = pl.List(pl.Struct({"start": pl.Int32, "stop": pl.Int32, "position": pl.Int32}))


class RunIdentity:
    """Which run and turn a row of turns is."""

    stage = "generate"
    model: Annotated[Dtype, "", "name of the model in the configuration"] = pl.String
    model_revision: Annotated[Dtype, "", "revision or checksum of the weights"] = pl.String
    dataset: Annotated[Dtype, "", "name of the dataset in the configuration"] = pl.String
    dialogue: Annotated[Dtype, "", "number of the dialogue in the pool, three digits"] = pl.String
    dialogue_id: Annotated[Dtype, "", "the dialogue's own id in its dataset"] = pl.String
    policy: Annotated[Dtype, "", "name of the policy in the configuration"] = pl.String
    kind: Annotated[Dtype, "", "kind of the policy, such as attention_top"] = pl.String
    parameters: Annotated[Dtype, "", "the policy's parameters, as JSON"] = pl.String
    positions: Annotated[Dtype, "", "position mode: stale, original or rerotated"] = pl.String
    threshold: Annotated[Dtype, "", "name of the threshold; none for the baseline"] = pl.String
    trigger: Annotated[Dtype, "", "when the policy is asked: paper, turn, prompt or step"] = (
        pl.String
    )
    threshold_tokens: Annotated[Dtype, "tokens", "cache size that triggers an eviction"] = pl.Int32
    target_tokens: Annotated[Dtype, "tokens", "cache size after an eviction"] = pl.Int32
    seed: Annotated[Dtype, "", "seed of policy and sampling"] = pl.Int32
    replies: Annotated[Dtype, "", "which replies enter the cache: own or reference"] = pl.String
    turn: Annotated[Dtype, "", "number of the turn, from 0"] = pl.Int32
    turns_total: Annotated[Dtype, "turns", "turns that the run plays"] = pl.Int32


class TurnMeasures:
    """What is measured of a turn."""

    stage = "generate"
    shared_prefix: Annotated[
        Dtype, "", "the turn was computed once for all policies, before the first eviction"
    ] = pl.Boolean
    scores_collected: Annotated[Dtype, "", "attention scores were collected"] = pl.Boolean
    prompt_tokens: Annotated[Dtype, "tokens", "fed before the reply, chat template included"] = (
        pl.Int32
    )
    reply_tokens: Annotated[Dtype, "tokens", "fed as the reply"] = pl.Int32
    tokens_seen_start: Annotated[Dtype, "tokens", "fed before the turn"] = pl.Int32
    tokens_seen_end: Annotated[Dtype, "tokens", "fed by the end of the turn"] = pl.Int32
    slots_start: Annotated[Dtype, "slots", "cached when the turn starts"] = pl.Int32
    slots_after_prefill: Annotated[Dtype, "slots", "cached after the prompt was fed"] = pl.Int32
    slots_after_eviction: Annotated[
        Dtype, "slots", "cached after the turn's last eviction; missing if it has none"
    ] = pl.Int32
    slots_end: Annotated[Dtype, "slots", "cached at the end of the turn"] = pl.Int32
    slots_peak: Annotated[Dtype, "slots", "most that were cached during the turn"] = pl.Int32
    next_position: Annotated[
        Dtype, "positions", "position of the reply's first token; missing if kv heads differ in it"
    ] = pl.Int32
    cache_bytes_start: Annotated[Dtype, "bytes", "size of the cache when the turn starts"] = (
        pl.Int64
    )
    cache_bytes_after_prefill: Annotated[Dtype, "bytes", "size after the prompt was fed"] = pl.Int64
    cache_bytes_after_eviction: Annotated[Dtype, "bytes", "size after the turn's last eviction"] = (
        pl.Int64
    )
    cache_bytes_end: Annotated[Dtype, "bytes", "size at the end of the turn"] = pl.Int64
    cache_bytes_peak: Annotated[Dtype, "bytes", "largest size during the turn"] = pl.Int64
    token_bytes: Annotated[Dtype, "bytes", "size of one slot over all layers"] = pl.Int64
    peak_device_bytes: Annotated[
        Dtype, "bytes", "most memory that PyTorch had allocated on the GPU; missing on a CPU"
    ] = pl.Int64
    evictions: Annotated[Dtype, "", "evictions of the turn"] = pl.Int32
    evicted_tokens: Annotated[Dtype, "tokens", "evicted in the turn"] = pl.Int32
    eviction_s: Annotated[Dtype, "s", "all evictions of the turn: moving the survivors"] = (
        pl.Float64
    )
    scoring_s: Annotated[Dtype, "s", "all evictions of the turn: ranking the slots"] = pl.Float64
    prefill_s: Annotated[
        Dtype,
        "s",
        "feeding the prompt, without any eviction; missing if its reply was fed with it, "
        "as runs of one batch do",
    ] = pl.Float64
    ttft_s: Annotated[
        Dtype, "s", "turn's start to the own reply's first token, with the evictions before it"
    ] = pl.Float64
    tpot_s: Annotated[
        Dtype, "s", "per further token of the own reply, with the evictions between them"
    ] = pl.Float64
    decode_tokens_per_s: Annotated[Dtype, "tokens/s", "1 / tpot_s"] = pl.Float64
    concurrency: Annotated[
        Dtype, "runs", "most runs active at once; if more than 1, seconds are not of this run alone"
    ] = pl.Int32
    batch_tokens_per_s: Annotated[Dtype, "tokens / s", "of all sequences decoded together"] = (
        pl.Float64
    )
    prompt: Annotated[Dtype, "", "what the user says, with needles"] = pl.String
    message: Annotated[
        Dtype, "", "what the user says in the dataset; missing where no needle changes it"
    ] = pl.String
    reply: Annotated[Dtype, "", "the model's own reply; missing if none was generated"] = pl.String
    reference: Annotated[Dtype, "", "the dataset's reply"] = pl.String
    finish_reason: Annotated[
        Dtype, "", "how the own reply ended: eos, length, not_generated, out_of_memory"
    ] = pl.String
    reply_token_count: Annotated[Dtype, "tokens", "length of the model's own reply"] = pl.Int32
    reference_nll: Annotated[
        Dtype, "nats / token", "mean negative log-likelihood of the reference reply"
    ] = pl.Float64
    reference_tokens: Annotated[Dtype, "tokens", "tokens that reference_nll is over"] = pl.Int32
    reference_token_nll: Annotated[Dtype, "nats", "NLL of each token of the reference reply"] = (
        pl.List(pl.Float32)
    )
    kl_baseline: Annotated[
        Dtype,
        "nats / token",
        "KL divergence from the baseline's next-token distribution to this one",
    ] = pl.Float64
    reply_nll: Annotated[Dtype, "nats / token", "mean NLL of the own reply under its own cache"] = (
        pl.Float64
    )
    reply_nll_baseline: Annotated[
        Dtype,
        "nats / token",
        "mean NLL of the own reply where nothing is evicted of the run's own history",
    ] = pl.Float64
    reply_nll_baseline_history: Annotated[
        Dtype,
        "nats / token",
        "mean NLL of the own reply where nothing is evicted and the history is the baseline's",
    ] = pl.Float64


class Integrity:
    """Positional integrity of the cache that a reply's tokens met, each token counting alike;
    formulas in `metrics.positions`."""

    stage = "generate"
    retained_share: Annotated[Dtype, "share", "cached slots per token seen"] = pl.Float64
    kept_spans: Annotated[Dtype, "spans", "contiguous stretches of kept tokens"] = pl.Float64
    future_share: Annotated[Dtype, "share", "slots whose position is not before the query's"] = (
        pl.Float64
    )
    collisions: Annotated[Dtype, "slots", "slots whose position an earlier slot has already"] = (
        pl.Float64
    )
    order_inversions: Annotated[
        Dtype, "pairs", "pairs of slots whose positions are in the wrong order"
    ] = pl.Float64
    out_of_window_share: Annotated[
        Dtype, "share", "slots farther from the query than the trained window"
    ] = pl.Float64
    mean_offset_error: Annotated[
        Dtype, "positions", "mean distance between the offset RoPE encodes and the true offset"
    ] = pl.Float64
    signed_offset_error: Annotated[
        Dtype, "positions", "mean of the offset RoPE encodes minus the true one; below 0: too near"
    ] = pl.Float64
    phase_distortion: Annotated[
        Dtype, "0 to 2", "mean of 1 - cos(theta_k * offset error) over slots and frequencies k"
    ] = pl.Float64
    phase_distortion_weighted: Annotated[
        Dtype,
        "0 to 2",
        "phase_distortion at the reply's end, slots weighted by the attention of its last token",
    ] = pl.Float64
    sinks_kept: Annotated[Dtype, "tokens", "how many of the first four tokens are cached"] = (
        pl.Float64
    )
    evicted_attention_share: Annotated[
        Dtype, "share", "attention that the run's evictions removed, compounded"
    ] = pl.Float64


#: The last two are of one moment only.
NOT_AT_END = ("phase_distortion_weighted", "evicted_attention_share")
IntegrityAtEnd = at_end(Integrity, without=NOT_AT_END)


class Disruption:
    """What the run's latest eviction changed in what attention computes, over the latest
    `session.disruption_window` queries then, mean over layers and query heads; formulas in
    `metrics.disruption`. Missing before an eviction, and where it is not measured."""

    stage = "generate"
    disruption_tokens: Annotated[
        Dtype, "share", "relative error of attention outputs by the evicted slots, at true offsets"
    ] = pl.Float64
    disruption_positions: Annotated[
        Dtype, "share", "relative error of attention outputs by the survivors' positions alone"
    ] = pl.Float64
    future_attention_share: Annotated[
        Dtype, "share", "attention on survivors whose position is not before the next token's"
    ] = pl.Float64


class TurnSetting:
    """What a turn ran on."""

    stage = "generate"
    trained_window: Annotated[Dtype, "tokens", "context length that the model was trained for"] = (
        pl.Int32
    )
    device: Annotated[Dtype, "", "name of the GPU, or cpu"] = pl.String
    dtype: Annotated[Dtype, "", "number format of weights and cache"] = pl.String


class TextMetrics:
    """Properties of the model's own reply; definitions in `metrics.text`."""

    stage = "measure"
    rep_2: Annotated[Dtype, "share", "word 2-grams of the reply that are repeats"] = pl.Float64
    rep_3: Annotated[Dtype, "share", "word 3-grams of the reply that are repeats"] = pl.Float64
    rep_4: Annotated[Dtype, "share", "word 4-grams of the reply that are repeats"] = pl.Float64
    longest_repeat_words: Annotated[Dtype, "words", "longest span of words that occurs twice"] = (
        pl.Int32
    )
    compression_ratio: Annotated[Dtype, "ratio", "bytes of the reply per byte of its zlib form"] = (
        pl.Float64
    )
    echo_share: Annotated[
        Dtype, "share", "words in runs of four or more that are copied from the prompt"
    ] = pl.Float64
    chrf: Annotated[Dtype, "0 to 100", "chrF2 against the reference reply"] = pl.Float64
    rouge_l: Annotated[Dtype, "0 to 1", "ROUGE-L F1 against the reference reply"] = pl.Float64


class Evictions:
    """The eviction log: one row per eviction and keep set."""

    stage = "generate"
    turn: Annotated[Dtype, "", "number of the turn, from 0"] = pl.Int32
    step: Annotated[Dtype, "", "number of the eviction in the run, from 0"] = pl.Int32
    tokens_seen: Annotated[Dtype, "tokens", "fed before the eviction"] = pl.Int32
    slots_before: Annotated[Dtype, "slots", "cached before the eviction"] = pl.Int32
    slots_after: Annotated[Dtype, "slots", "cached after the eviction"] = pl.Int32
    group: Annotated[Dtype, "", "whose keep set: shared, or a layer's or a head's"] = pl.String
    slot_spans: Annotated[Dtype, "slots", "which slots survive, as [start, stop)"] = SPANS
    token_spans: Annotated[Dtype, "token index", "which tokens survive, as [start, stop)"] = SPANS
    position_spans: Annotated[
        Dtype, "slots", "slots [start, stop) hold the positions from `position` on"
    ] = POSITION_SPANS
    next_position: Annotated[Dtype, "positions", "position of the next fed token"] = pl.Int32
    eviction_s: Annotated[Dtype, "s", "time of the eviction, scoring aside"] = pl.Float64
    scoring_s: Annotated[Dtype, "s", "time spent on its scores"] = pl.Float64
    attention_share: Annotated[
        Dtype, "share", "attention that the evicted slots received; missing without scores"
    ] = pl.Float64
    healing: Annotated[Dtype, "", "what was done about the gap; none for nothing"] = pl.String
    healing_slots: Annotated[
        Dtype, "slots", "cached slots, in each kv head, that the healing fills, within the target"
    ] = pl.Int32
    healing_bytes: Annotated[Dtype, "bytes", "what it holds besides keys and values"] = pl.Int64
    healing_s: Annotated[Dtype, "s", "time of the healing"] = pl.Float64
    disruption_tokens: Annotated[
        Dtype, "share", "relative error of attention outputs by the evicted slots, at true offsets"
    ] = pl.Float64
    disruption_positions: Annotated[
        Dtype, "share", "relative error of attention outputs by the survivors' positions alone"
    ] = pl.Float64
    future_attention_share: Annotated[
        Dtype, "share", "attention on survivors whose position is not before the next token's"
    ] = pl.Float64
    disruption_tokens_by_head: Annotated[
        Dtype, "share", "disruption_tokens of each query head, a list for each layer of the group"
    ] = BY_HEAD
    disruption_positions_by_head: Annotated[
        Dtype, "share", "disruption_positions of each query head, a list for each layer"
    ] = BY_HEAD
    ranking_bytes: Annotated[
        Dtype,
        "bytes",
        "most that ranking held at once, beyond what was cached; measured at the first eviction "
        "on a cell's first dialogue, missing at others",
    ] = pl.Int64
    held_bytes: Annotated[
        Dtype, "bytes", "kept for the policy between evictions: scores, queries, calibration"
    ] = pl.Int64


class RecallRun:
    """Which run and turn a recall question is of, in tables: the columns of its turn."""

    stage = "generate"
    model: Annotated[Dtype, "", "name of the model in the configuration"] = pl.String
    dataset: Annotated[Dtype, "", "name of the dataset in the configuration"] = pl.String
    dialogue: Annotated[Dtype, "", "number of the dialogue in the pool, three digits"] = pl.String
    dialogue_id: Annotated[Dtype, "", "the dialogue's own id in its dataset"] = pl.String
    policy: Annotated[Dtype, "", "name of the policy in the configuration"] = pl.String
    kind: Annotated[Dtype, "", "kind of the policy, such as attention_top"] = pl.String
    positions: Annotated[Dtype, "", "position mode: stale, original or rerotated"] = pl.String
    threshold: Annotated[Dtype, "", "name of the threshold; none for the baseline"] = pl.String
    target_tokens: Annotated[Dtype, "tokens", "cache size after an eviction"] = pl.Int32
    seed: Annotated[Dtype, "", "seed of policy and sampling"] = pl.Int32
    replies: Annotated[Dtype, "", "which replies enter the cache: own or reference"] = pl.String
    turn: Annotated[Dtype, "", "turn after which the question is put"] = pl.Int32


class RecallQuestion:
    """One recall question: an entry of the column `recall` of the turn after which it is put."""

    stage = "generate"
    probe: Annotated[Dtype, "", "number of the question in the run, from 0"] = pl.Int32
    origin: Annotated[Dtype, "", "needle, or dataset: the dataset's own question"] = pl.String
    depth: Annotated[
        Dtype, "", "where in the dialogue the evidence is: early, middle, recent or unknown"
    ] = pl.String
    subject: Annotated[Dtype, "", "what the question is about"] = pl.String
    evidence_turn: Annotated[Dtype, "", "turn whose message holds the answer"] = pl.Int32
    evidence_retained_share: Annotated[
        Dtype, "share", "tokens of the message with the answer that are still cached"
    ] = pl.Float64
    slots: Annotated[Dtype, "slots", "cached when the question is put"] = pl.Int32
    evictions: Annotated[Dtype, "", "evictions of the run so far"] = pl.Int32
    question: Annotated[Dtype, "", "the question"] = pl.String
    answer: Annotated[Dtype, "", "the right answer"] = pl.String
    distractors: Annotated[Dtype, "", "wrong answers"] = pl.List(pl.String)
    answer_nll: Annotated[Dtype, "nats / token", "mean NLL of the right answer"] = pl.Float64
    distractor_nll: Annotated[Dtype, "nats / token", "mean NLL of each distractor"] = pl.List(
        pl.Float64
    )
    margin: Annotated[
        Dtype, "nats / token", "NLL of the best distractor minus that of the right answer"
    ] = pl.Float64
    chosen: Annotated[Dtype, "", "the right answer is likelier than every distractor"] = pl.Boolean
    reply: Annotated[Dtype, "", "the model's own answer; missing if none was generated"] = pl.String
    answered: Annotated[Dtype, "", "the model's own answer holds the right one"] = pl.Boolean


RECALL_QUESTION = schema(RecallQuestion)


class TurnQuestions:
    """What is asked after a turn."""

    stage = "generate"
    recall: Annotated[
        Dtype, "", "the recall questions that are put after the turn; missing if there are none"
    ] = pl.List(pl.Struct(RECALL_QUESTION))


class MeasuredRun:
    """Which run a row of metrics is of: one file holds those of a dialogue's runs."""

    stage = "measure"
    run: Annotated[Dtype, "", "the run, as in the path of its turns"] = pl.String


class JudgedRun:
    """Which run a verdict is on."""

    stage = "judge"
    run: Annotated[Dtype, "", "the run, as in the path of its turns"] = pl.String


class TurnNumber:
    """Which turn a row of metrics is of."""

    stage = "measure"
    turn: Annotated[Dtype, "", "number of the turn, from 0"] = pl.Int32


class Verdicts:
    """One judge's verdict on one reply."""

    stage = "judge"
    turn: Annotated[Dtype, "", "number of the turn, from 0"] = pl.Int32
    judge: Annotated[Dtype, "", "name of the judge in the configuration"] = pl.String
    judge_kind: Annotated[Dtype, "", "kind of the judge, such as formula"] = pl.String
    judge_model: Annotated[Dtype, "", "model that the judge asks; empty for a formula"] = pl.String
    rubric: Annotated[Dtype, "", "digest of the rubric"] = pl.String
    score: Annotated[Dtype, "1 to 10", "the verdict; missing unless status is ok"] = pl.Int32
    status: Annotated[
        Dtype, "", "ok, or why there is no score: failed, refused, truncated, unparsable, ..."
    ] = pl.String
    reason: Annotated[Dtype, "", "the judge's reason, or why there is no score"] = pl.String
    prompt_tokens: Annotated[Dtype, "tokens", "of the request, by the endpoint's count"] = pl.Int32
    completion_tokens: Annotated[Dtype, "tokens", "of the answers, by the endpoint's count"] = (
        pl.Int32
    )
    cost_usd: Annotated[Dtype, "USD", "price of all answers; missing without a price"] = pl.Float64
    request: Annotated[Dtype, "", "hash of the request; verdicts that share it were paid once"] = (
        pl.String
    )
    answers: Annotated[Dtype, "", "answers that came, unusable ones included"] = pl.Int32
    reasoning_tokens: Annotated[
        Dtype, "tokens", "of reasoning, part of completion_tokens, by the endpoint's count"
    ] = pl.Int32
    possible_usd: Annotated[
        Dtype,
        "USD",
        "highest price of tries that were lost and of answers without a count of tokens, which may "
        "have been charged on top of cost_usd; missing if there are none",
    ] = pl.Float64
    messages_cut: Annotated[
        Dtype, "messages", "messages of the history left out to fit the judge's context"
    ] = pl.Int32


class CorruptedReply:
    """Which reply of a judge's test a verdict is on."""

    stage = "test_judge"
    item: Annotated[Dtype, "", "number of the reply"] = pl.Int32
    dialogue: Annotated[Dtype, "", "dialogue that it is from"] = pl.String
    kind: Annotated[Dtype, "", "good, or the corruption"] = pl.String
    repeat: Annotated[Dtype, "", "which time the verdict was asked for, from 0"] = pl.Int32


INTEGRITY = schema(Integrity)
INTEGRITY_AT_END = schema(IntegrityAtEnd)
DISRUPTION = schema(Disruption)
TURN = (RunIdentity, TurnMeasures, Integrity, IntegrityAtEnd, Disruption, TurnSetting)
TURNS = schema(*TURN, TurnQuestions)
EVICTIONS = schema(Evictions)
#: Recall questions as a table of their own, see `records.questions`.
RECALL = schema(RecallRun, RecallQuestion)
METRICS = schema(MeasuredRun, TurnNumber, TextMetrics)
VERDICTS = schema(Verdicts)
RUN_VERDICTS = schema(JudgedRun, Verdicts)
CORRUPTION_VERDICTS = schema(CorruptedReply, Verdicts)
#: What each artifact's columns are declared by.
ARTIFACTS: dict[str, tuple[type, ...]] = {
    "turns": (*TURN, TurnQuestions),
    "evictions": (Evictions,),
    "recall": (RecallQuestion,),
    "metrics": (MeasuredRun, TurnNumber, TextMetrics),
    "verdicts": (JudgedRun, Verdicts),
    "judge_test": (CorruptedReply, Verdicts),
}
