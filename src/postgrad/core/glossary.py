"""What every metric means, in one sentence with its unit. `explain` answers for any key that is logged."""

from __future__ import annotations

import re

GLOSSARY: dict[str, str] = {
    "rollout/pass_rate": "Share of this step's verified samples that passed (0 to 1); on training prompts.",
    "rollout/reward_mean": "Mean reward of the samples of this step, before any transform (reward units).",
    "rollout/truncated_fraction": "Share of samples cut off by the token limit (0 to 1).",
    "rollout/interrupted_fraction": "Share of samples whose thinking was interrupted by the injected "
    "phrase (0 to 1).",
    "rollout/zero_variance_fraction": "Share of groups whose rewards are all equal, which carry no "
    "gradient (0 to 1).",
    "rollout/*/score_mean": "Mean score of the part {0} of a weighted reward, over the samples that have it (its unit).",
    "rollout/dropped_groups": "Groups without variance that were generated for this update and replaced by others; they are "
    "in the rollout metrics, not in the loss (groups).",
    "rollout/length_penalty_mean": "Mean of what the reward loses for length; 0 for samples that did not pass (reward units).",
    "rollout/completion_tokens_mean": "Mean completion length (tokens).",
    "rollout/completion_tokens_max": "Longest completion of the step (tokens).",
    "rollout/verify_failed_fraction": "Share of samples without a verdict (error, timeout or non-finite "
    "score); "
    "they are left out, not scored 0 (0 to 1).",
    "rollout/verify_timeouts": "Verdicts given up because the verifier took too long (samples).",
    "rollout/verify_errors": "Verdicts lost to an exception in the verifier (samples).",
    "rollout/verify_non_finite": "Verdicts that were no finite number (samples).",
    "loss/policy": "Value of the policy objective with its sign turned (no unit); its size says little, it "
    "is no error.",
    "loss/cap_hit_fraction": "Share of trained tokens whose importance ratio was cut by the cap or clip (0 "
    "to 1).",
    "loss/ratio_mean": "Mean importance ratio of trainer to generator over trained tokens (1 = on-policy).",
    "loss/ratio_max": "Greatest importance ratio over trained tokens, before the cap (1 = on-policy).",
    "loss/entropy": "Mean entropy of the trainer's next-token distribution over trained tokens (nats per "
    "token).",
    "loss/kl_k1_policy_ref": "KL(policy ‖ reference) by the k1 estimator, mean of log p − log p_ref over trained tokens (nats "
    "per token; may be negative).",
    "loss/kl_k3_policy_ref": "KL(policy ‖ reference) by the k3 estimator, mean of r − 1 − log r with r = p_ref / p over trained "
    "tokens (nats per token; never negative).",
    "loss/reward_kl_mean": "Mean of what the rewards of the trained samples lose to the KL to the reference (reward units).",
    "loss/grad_norm": "Global norm of the gradient before clipping (no unit).",
    "loss/lr": "Learning rate of this update (no unit).",
    "loss/trained_tokens": "Tokens in the loss of this update, injected ones excluded (tokens).",
    "loss/trained_samples": "Samples in the loss of this update (samples).",
    "loss/covariance_fraction": "Share of trained tokens that KL-Cov or Clip-Cov acts on (0 to 1).",
    "staleness/mean": "Mean age of the weights that sampled the trained tokens (versions behind the "
    "trainer).",
    "staleness/max": "Greatest age of the weights that sampled a trained token (versions behind the "
    "trainer).",
    "staleness/histogram": "Trained tokens by the age of the weights that sampled them, in versions behind "
    "the trainer (tokens).",
    "mismatch/kl_k1_gen_train": "KL(generator ‖ trainer) by the k1 estimator, mean of log p_gen − log "
    "p_train over "
    "sampled tokens (nats per token; may be negative).",
    "mismatch/kl_k3_gen_train": "KL(generator ‖ trainer) by the k3 estimator, mean of r − 1 − log r with "
    "r = p_train / p_gen (nats per token; never negative).",
    "curriculum/active_prompts": "Training prompts that can still be sampled (prompts).",
    "curriculum/removed_prompts": "Prompts removed for good because their pass rate reached the threshold "
    "(prompts).",
    "curriculum/epoch": "Passes begun over the active prompts (passes).",
    "time/step_s": "Wall time of this step (seconds).",
    "time/generate_s": "Wall time spent generating in this step (seconds).",
    "time/train_s": "Wall time spent in forward, backward and optimiser in this step (seconds).",
    "time/verify_s": "Wall time spent waiting for verdicts in this step (seconds).",
    "time/eval_s": "Wall time of the held-out evaluation (seconds).",
    "time/elapsed_s": "Wall time since the run started, without the time between a stop and a resume "
    "(seconds).",
    "speed/generate_tokens_per_s": "Completion tokens generated per second of generation (tokens/s).",
    "speed/train_tokens_per_s": "Tokens trained on per second of training (tokens/s).",
    "speed/samples_per_s": "Samples finished per second of wall time (samples/s).",
    "idle/generator_fraction": "Share of the time (virtual in one process) in which generators had nothing to do (0 to 1).",
    "idle/generator_restarts": "Generators that died and were replaced so far (processes).",
    "idle/reissued_requests": "Samples under way that were begun anew because their generator died, so far (samples).",
    "idle/trainer_fraction": "Share of that time in which the trainer waited for samples (0 to 1).",
    "eval/pass_rate": "Held-out pass rate, mean@k over prompts that are never trained on (0 to 1).",
    "eval/pass_rate_low": "Lower end of the 95 % interval of the held-out pass rate, clustered by prompt "
    "(0 to 1).",
    "eval/pass_rate_high": "Upper end of the 95 % interval of the held-out pass rate, clustered by prompt "
    "(0 to 1).",
    "eval/*/pass_rate": "Held-out pass rate of the task {0} (0 to 1).",
    "eval/*/pass_rate_low": "Lower end of the 95 % interval of the held-out pass rate of {0} (0 to 1).",
    "eval/*/pass_rate_high": "Upper end of the 95 % interval of the held-out pass rate of {0} (0 to 1).",
    "eval/reward_mean": "Mean reward of the held-out samples that have one, before any transform (reward units).",
    "eval/verify_failed_fraction": "Share of the held-out samples without a verdict, so without a reward (0 to 1).",
    "eval/*/reward_mean": "Mean reward of the held-out samples of the task {0} that have one (reward units).",
    "eval/completion_tokens_mean": "Mean completion length in held-out evaluation (tokens).",
    "eval/truncated_fraction": "Share of held-out samples cut off by the token limit (0 to 1).",
    "compute/train_flops": "Floating-point operations spent in training so far, estimated from tokens "
    "(FLOPs).",
    "compute/generate_flops": "Floating-point operations spent in generation so far, estimated from tokens "
    "(FLOPs).",
    "compute/total_tokens": "Tokens generated so far (tokens).",
    "forecast/ceiling": "Forecast of the held-out pass rate at which the run levels off, A of the sigmoid law (no unit).",
    "forecast/ceiling_low": "Lower end of the 95 % interval of the forecast ceiling (no unit).",
    "forecast/ceiling_high": "Upper end of the 95 % interval of the forecast ceiling (no unit).",
    "forecast/exponent": "How steeply the run approaches its ceiling, B of the sigmoid law (no unit).",
    "forecast/compute_to_share": "Compute at which the law reaches 90 % of the ceiling (FLOPs).",
    "scaling/ceiling": "A, the reward that the law approaches (the reward's unit).",
    "scaling/ceiling_*": "The {0} end of the interval of A (the reward's unit).",
    "scaling/exponent": "B, the efficiency exponent (no unit).",
    "scaling/exponent_*": "The {0} end of the interval of B (no unit).",
    "scaling/midpoint": "C_mid, the compute at which half of the way from R0 to A is made (its unit).",
    "scaling/midpoint_*": "The {0} end of the interval of C_mid (the unit of the compute axis).",
    "scaling/initial": "R0, the reward at no compute (the reward's unit).",
    "scaling/initial_*": "The {0} end of the interval of R0 (the reward's unit).",
    "time/transform_s": "Wall time of re-rewarding in this step, reference passes included (s).",
    "rollout/reward_total_mean": "Mean reward after the transform: with the KL, the lift or the bonus in it (reward units).",
    "mara/good_fraction": "Share of samples whose reward reaches the threshold (0 to 1).",
    "mara/reference_needed_fraction": "Share of samples whose log-prob under the reference was needed (0 to 1).",
    "mara/reference_scored_fraction": "Share of samples that took a forward pass under the reference (0 to 1).",
    "mara/replayed_fraction": "Share of the trained samples that are good answers seen before (0 to 1).",
    "mara/num_replay_answers": "Good answers remembered for replay, over all prompts (answers).",
    "mara/filtered_fraction": "Share of samples whose answer had filled its bucket of the diversity filter (0 to 1).",
    "mara/num_anchors": "Prompts with a stored anchor (prompts).",
    "mara/kl_k1_policy_ref": "KL(policy ‖ reference) per completion, k1 estimate, over the samples scored (nats).",
    "mara/reward_length_correlation": "Correlation of total reward and length among good samples; uniform over token "
    "sequences favours long ones (-1 to 1).",
    "learn/loss_before": "Loss of the edit's texts before its first update (nats per token).",
    "learn/loss_after": "Loss of the edit's texts after its last update (nats per token).",
    "learn/seconds": "Seconds that the edit took, evaluation not counted (s).",
    "learn/rows": "Rows of the value tables that the edit changed (rows).",
    "learned/exact": "Share of the questions about facts taught so far that are answered exactly (0 to 1).",
    "learned/f1": "Mean F1 of the words of these answers (0 to 1).",
    "kept/exact": "Share of the questions about facts known before that are answered exactly (0 to 1).",
    "kept/f1": "Mean F1 of the words of these answers (0 to 1).",
    "kept/loss": "Loss on background text (nats per token).",
    "optimum/beta": "β, the coefficient of the KL to the reference (no unit).",
    "optimum/*/good_mass": "Chance of a good answer at the optimum of {0} (0 to 1).",
    "optimum/*/rare_given_good": "Share of the good answers that the rarest one has at the optimum of {0} (0 to 1).",
    "optimum/*/entropy": "Entropy of the answers at the optimum of {0} (nats).",
    "diversity/*/*_low": "Lower end of the interval of {1}, {0}, over prompts (its unit).",
    "diversity/*/*_high": "Upper end of the interval of {1}, {0}, over prompts (its unit).",
    "diversity/*/unique_fraction": "Different answers / answers of a prompt, mean over prompts, {0} (0 to 1).",
    "diversity/*/answer_entropy": "Entropy of the answers to a prompt, mean over prompts, {0} (nats).",
    "diversity/*/ead": "Expectation-adjusted distinct n-grams of the answers to a prompt, mean over prompts, {0} (no unit).",
    "diversity/*/self_bleu": "BLEU of each answer against the others of its prompt, {0}; 1 = all alike (0 to 1).",
    "diversity/*/pass_at_1": "Chance that an answer is good, mean over prompts, {0} (0 to 1).",
    "diversity/*/pass_at_k": "Unbiased chance that one of k answers is good, mean over prompts, {0} (0 to 1).",
    "diversity/*/distinct_good": "Different good answers to a prompt, mean over prompts, {0} (answers).",
    "diversity/*/coverage": "Share of the enumerated good answers to a prompt that were found, {0} (0 to 1).",
    "diversity/*/kl_to_uniform": "KL(good answers given ‖ uniform over the good set), mean over prompts, {0} (nats).",
    "diversity/*/semantic_diversity": "Mean cosine distance between the answers to a prompt, mean over prompts, {0} (0 to 2).",
    "diversity/*/distinct": "Classes of answers to a prompt that do the same for a reader, mean over prompts, {0} (classes).",
    "diversity/*/utility": "NoveltyBench's utility of the answers to a prompt, mean over prompts, {0} (0 to 10).",
    "diversity/*/yield": "Different good answers, over all prompts, {0} (answers).",
    "diversity/*/oracle_burden": "Different answers judged until the target number of different good ones, {0} (answers).",
    "diversity/*/valid_fraction": "Share of the answers that are molecules, {0} (0 to 1).",
    "diversity/*/internal_diversity": "IntDiv1, 1 − mean Tanimoto similarity of the counted molecules, {0} (0 to 1).",
    "diversity/*/circles": "#Circles, counted molecules that are far from all counted before, {0} (molecules).",
    "diversity/*/vendi": "Vendi score, the effective number of different molecules, {0} (molecules).",
    "chain/number": "Which chain the draw is of (from 0).",
    "chain/loss": "Mean training loss at the draw (nats per example).",
    "sampler/curvature": "Largest eigenvalue of nβH + γ after preconditioning; 1 = it fits (no unit; sgld: as nβH).",
    "sampler/step_size": "ε, the step of the chains (no unit; sgld: one by the unit of the curvature).",
    "sampler/beta": "β, the inverse temperature (no unit).",
    "sampler/damping": "λ, what is added to the curvature of the mean loss (curvature).",
    "sampler/draws": "Draws of all chains together (draws).",
    "sampler/num_weights": "Weights that are sampled (weights).",
    "diagnostics/r_hat": "Split R̂, worst over the mean training loss and the queries' losses; 1 = chains have mixed (no unit).",
    "diagnostics/ess": "Effective number of draws, all chains together, worst over the same losses (draws).",
    "diagnostics/drift": "Correlation of a loss with time, worst over the same losses; 0 = none (0 to 1).",
    "diagnostics/common_mode": "Share of the variance of all training losses that their mean explains; near 1 scores cannot tell "
    "examples apart (0 to 1).",
    "diagnostics/llc": "Local learning coefficient nβ(E[L] − L(w*)) of the weights as λ holds them: half as many as the data "
    "determine; below 0 they are no minimum (no unit).",
    "diagnostics/llc_low": "Lower end of its 95 % interval, from all chains' variance and effective draws (no unit).",
    "diagnostics/llc_high": "Upper end of the same interval (no unit).",
    "diagnostics/distance": "Mean distance of draws from the weights (unit of the weights).",
    "diagnostics/stability": "Rank correlation of the scores with those of as many other chains, median over queries (-1 to 1).",
    "diagnostics/agreement": "Rank correlation with the scores at half the step, median over queries (-1 to 1).",
    "diagnostics/checkpoint_agreement": "Rank correlation of the scores at two checkpoints, mean over pairs, median over queries "
    "(-1 to 1).",
    "checkpoint/number": "Which of the checkpoints the line belongs to (from 1 on).",
    "time/attribute_s": "Wall time of the whole attribution (s).",
    "learn/accuracy": "Share of all samples so far whose first answer, given before anything was learned from them, is right; no "
    "reply is a wrong answer (0 to 1).",
    "learn/accuracy_recent": "Share of the last 50 samples whose first answer is right (0 to 1).",
    "learn/accuracy_after": "Share of all samples so far whose last answer, given after reflection, is right (0 to 1).",
    "learn/correct": "Whether the first answer to this sample is right (0 or 1).",
    "learn/failed": "Samples so far that got no reply and are counted as wrong (samples).",
    "learn/calls": "Replies that this sample took, of all roles, repairs included (calls).",
    "learn/problems": "Replies for this sample that did not follow their schema (calls).",
    "playbook/bullets": "Bullets in the playbook after this sample, those in quarantine included (bullets).",
    "playbook/quarantined": "Bullets that are not shown to the Generator yet (bullets).",
    "playbook/retired": "Bullets that were there and are not any more: merged, retired, or without room (bullets).",
    "playbook/tokens": "Length of the playbook in a prompt, by the Generator's tokenizer or a cautious estimate (tokens).",
    "playbook/rewrites": "How often the playbook's lines were written anew, which empties a server's prefix cache (rewrites).",
    "validation/accuracy": "Share of held-out prompts that the playbook of this step answers rightly (0 to 1).",
    "validation/accuracy_low": "Lower end of the 95 % interval of the held-out accuracy (0 to 1).",
    "validation/accuracy_high": "Upper end of the 95 % interval of the held-out accuracy (0 to 1).",
    "validation/best_accuracy": "Held-out accuracy of the version that is kept, the best so far (0 to 1).",
    "validation/cost_usd": "What this validation cost, where prices are known (USD).",
    "cost/usd": "What all calls so far cost, validation included; absent where a price or a count of tokens is not known (USD).",
    "cost/*_calls": "Replies of the {0} so far, with validation if it is the generator's (calls).",
    "cost/*_prompt_tokens": "Prompt tokens of the {0} so far, as its server counts them (tokens).",
    "cost/*_cached_tokens": "Prompt tokens of the {0} so far that its server had in its cache (tokens).",
    "cost/*_completion_tokens": "Tokens of replies of the {0} so far, as its server counts them (tokens).",
    "autoencoder/explained": "R² of all agents' standardised states, of what the thoughts explain of them (at most 1).",
    "autoencoder/penalty_weight": "λ, the weight of the Jacobian's L1 norm beside the error of the states (no unit).",
    "structure/holders": "Thoughts by how many agents hold them, from 0 on (thoughts).",
    "adapter/loss": "Loss of this update, −log p of the words and 1 − cos of their mean embedding, mean over agents (nats per "
    "token, and no unit).",
    "adapter/loss_valid": "The same loss on cases set aside, by which the adapter is chosen (nats per token, and no unit).",
    "adapter/prefix_norm": "Mean length of the virtual tokens (mean lengths of a token's embedding).",
    "adapter/grad_norm": "Global norm of the adapter's gradient before clipping (no unit).",
    "eval/*/accuracy": "Share of held-out answers that are right where agents are told in the way {0} (0 to 1).",
    "eval/*/accuracy_low": "Lower end of the 95 % interval of that share for {0}, clustered by case (0 to 1).",
    "eval/*/accuracy_high": "Upper end of the 95 % interval of that share for {0}, clustered by case (0 to 1).",
    "eval/*/positions": "Tokens, real or virtual, that an agent is given in the way {0}, mean (tokens).",
    "eval/*/bits": "Size of what an agent is told in the way {0}, mean (bits).",
    "nonfinite/count": "Metrics of this line that were NaN or infinite and are written as null (values).",
}
"""Metric key → one sentence. `*` stands for one part or several; `{0}` in the sentence is what it matched."""


def explain(key: str) -> str:
    """The sentence for a metric key; an empty string for one that nobody explained.

    >>> explain("loss/grad_norm")
    'Global norm of the gradient before clipping (no unit).'
    >>> explain("eval/chain_sum/pass_rate")
    'Held-out pass rate of the task chain_sum (0 to 1).'
    >>> explain("made/up")
    ''
    """
    if key in GLOSSARY:
        return GLOSSARY[key]
    for pattern, text in GLOSSARY.items():
        if "*" in pattern:
            match = re.fullmatch("(.+)".join(map(re.escape, pattern.split("*"))), key)
            if match:
                return text.format(*match.groups())
    return ""
