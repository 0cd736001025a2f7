"""Losses for labels that may be wrong, partial or counts, by family.

`f(logits, labels, *, hyperparameters)` is one value per example (of bags, per
bag), for `jnl.base.global_mean`.

Cross-entropy, and what is mixed into its label
  ce                         cross-entropy
  label_smoothing            to a label mixed with the uniform one
  gls                        generalized label smoothing: also a negative rate
  bootstrap_soft             to a label mixed with the prediction
  bootstrap_hard             to a label mixed with the most probable class
  dynamic_bootstrap          mixed by the chance that the label is wrong (M-DYR)
  mixup                      of mixed inputs, against two labels
  negative_learning          -log(1 - p_y): the example is not of this class
  focal                      weighted down where the example is easy
  clip_logits                LogitClip: logits of bounded norm, for any loss
Robust, of the probability of the label
  mae                        mean absolute error, 1 - p_y
  rce                        reverse cross-entropy
  sce                        symmetric cross-entropy: forward and reverse
  gce                        generalized cross-entropy, (1 - p_y^q) / q
  truncated_gce              the same of the examples that are kept
  truncated_gce_weights      the examples that it keeps
  taylor_ce                  first terms of the Taylor series of cross-entropy
  agce                       asymmetric generalized cross-entropy
  aul                        asymmetric unhinged loss
  ael                        asymmetric exponential loss
Robust, of whole predictions
  js                         Jensen-Shannon divergence of label and prediction
  gjs                        the same of the label and several views
  gjs_of_mean                the same of the label and the mean of the views
  anorm                      asymmetric p-norm of the difference
  bi_tempered                bounded logistic loss of a heavy-tailed softmax
  tempered_log_softmax       that softmax
Normalized: over the sum of the loss at all labels
  nce                        normalized cross-entropy
  nmae                       normalized mean absolute error
  nrce                       normalized reverse cross-entropy
  ngce                       normalized generalized cross-entropy
  nfl                        normalized focal loss
  nnce                       normalized negative cross-entropy
  nnfl                       normalized negative focal loss
Active and passive, active and negative: weighted sums
  nce_rce                    NCE + RCE
  nce_mae                    NCE + MAE
  nfl_rce                    NFL + RCE
  nfl_mae                    NFL + MAE
  ngce_rce                   NGCE + RCE
  ngce_mae                   NGCE + MAE
  nce_agce                   NCE + AGCE
  nce_aul                    NCE + AUL
  nce_ael                    NCE + AEL
  anl_ce                     NCE + NNCE
  anl_fl                     NFL + NNFL
With a transition matrix
  forward                    loss correction: cross-entropy of p T
  backward                   loss correction: cross-entropy through T^-1
  importance_reweight        cross-entropy, weighted by p_y / (p T)_y
  t_revision                 the same, T revised while learning
With a memory of each example
  elr_targets                ELR: the running average of its predictions
  elr_penalty                ELR: the penalty for leaving that average
  elr_plus_labels            ELR+: labels weighted by that average
  sop                        SOP: the noise of its label is learned
  sop_probs                  SOP: the probabilities under that noise
Compared with other examples, or with another view
  peer                       cross-entropy less that of an unrelated pair
  cores2                     CORES: cross-entropy less the mean peer term
  cores2_sieve               CORES: the examples that it keeps
  f_divergence               that of paired from unpaired inputs and labels
  kl_consistency             divergence of one view from another
  symmetric_consistency      cross-entropy of either view against the other
  vat                        divergence under the worst small change of x
  entropy                    of the prediction, without a label (TENT)
Divergences for `f_divergence`
  Divergence                 the two functions that make one
  TOTAL_VARIATION            total variation, the most robust
  JENSEN_SHANNON             Jensen-Shannon
  KULLBACK_LEIBLER           Kullback-Leibler
  REVERSE_KL                 reverse Kullback-Leibler
  PEARSON                    Pearson chi-squared
  NEYMAN                     Neyman chi-squared
  SQUARED_HELLINGER          squared Hellinger
Of the whole batch, one number
  dmi                        determinant-based mutual information
  mean_entropy_gap           what the mean prediction lacks to be uniform
  prior_mean_kl              divergence of the mean prediction from a prior
Of partial risks [k], which cannot be negative
  clip_risks                 their sum without those that are (NN)
  abs_risks                  the sum of their sizes
  ascend_risks               their sum, or the way back from negative ones (GA)
Classes of uneven size: logits and weights, for any loss
  adjust_logits              plus the log of the prior: the balanced softmax
  subtract_margins           less a margin at the label
  ldam_margins               LDAM: margins by the size of classes
  class_weights              by the effective number of examples
Partial labels: candidates [..., c] bool
  cc                         classifier-consistent: -log of their probability
  uniform_candidates         cross-entropy to all of them alike
  proden                     PRODEN, RC, R-CR: cross-entropy to confidences
  proden_confidence          PRODEN, RC: p within the set
  rcr_confidence             R-CR: the geometric mean of views within the set
  rule_out                   -log(1 - p) of every class outside the set
  lws                        leveraged weighted loss of inside and outside
  lws_confidence             its weights
Positive and unlabeled: scores [b, ...] log-odds, `positive` bool, weights
  sigmoid_loss               of a score: the probability of the other label
  logistic_loss              of a score: cross-entropy
  pu_risks                   of positives, and of negatives without any
  upu                        their sum, without bias (uPU)
  nnpu                       the same, and the way back below zero (nnPU)
  vpu                        the variational loss, without a prior (VPU)
  pu_mlc                     the same of several labels, weighed (PU-MLC)
  pu_mlc_temperature         its temperature of each label
  mixup_log_consistency      VPU, PU-MLC: of mixed inputs with their parts
Complementary labels: what an example is not
  complementary_risks        partial risks of true labels, without bias (URE)
  scarce                     each class against the rest, what is left >= 0
  scl_exp                    exp(p_y); SCL-NL is negative_learning, FWD forward
  discriminative             cross-entropy of softmax(1 - p) (L-W, L-UW)
  order_preserving           cross-entropy of softmax(-z), weighted (OP)
  pairwise_comparison        how far the label is above the other classes (PC)
  mcl_mae                    of several: the probability of all of them
  mcl_exp                    of several: exponential form
  mcl_log                    of several: -log of the probability of the others
  decode_complementary       the class, by the nearest row of the matrix (CPE)
Label proportions: bags of logits [..., m, c] and counts
  count_nll                  -log of the probability of the number of positives
  count_nll_one_versus_rest  the same of each class, added up
  count_nll_joint            -log of the probability of all counts at once
  dllp                       cross-entropy of the mean prediction
  dllp_l1                    absolute error of the mean prediction
  dllp_squared               squared error of the mean prediction
  easy_llp                   any loss of instances, estimated without bias
  easy_llp_sampled           the same from one instance of each bag
  dsq                        the squared loss of instances, without bias
  gen_bags                   squared error of random combinations of bags
  transport_labels           labels that hold the counts, by optimal transport
  transport                  cross-entropy to those
  similarity_smoothness      squared differences of scores that are alike

Logits are [..., c], labels [...] integers or [..., c] floats, told apart by
shape; lists and numpy arrays are welcome. Soft labels mean the expected loss
sum_k t_k loss(z, k); for `js`, `gjs`, `anorm`, `bi_tempered` and `sop`, which
compare distributions, the definition on distributions. Only what is of the
whole batch reduces it.

Inputs below float32 are raised to it and the loss is float32; float64 stays.
A label out of range, or a soft one off the simplex, raises ValueError; where it
cannot be looked at, inside jit, the loss of the former is NaN and its gradient
0, so that `global_mean` with weight 0 leaves it out, and the latter is taken as
it is. Clips of official code that stop gradients are off unless asked for.

Hyperparameters are scalars and may be traced, if they are not Python ints,
bools or functions (`order`, `detach`). Weights of examples (`ratio`,
`noisy_prob`, `weights`) are [...]; an array of another shape raises.

A class of logit -inf is masked: it has probability and gradient 0, and counts
for nothing where its label is 0. What compares all classes loses its meaning
there: `nce`, `nfl` and `ngce(q=0)` are 0 with gradient 0 for every example (so
that `nce_rce` is `rce` alone), `label_smoothing`, `gls`, `cores2`, `backward`,
`complementary_risks` and `order_preserving` are infinite (or about 1e30). Leave
such classes out instead.
"""

from jnl.losses._combined import (
  anl_ce,
  anl_fl,
  nce_ael,
  nce_agce,
  nce_aul,
  nce_mae,
  nce_rce,
  nfl_mae,
  nfl_rce,
  ngce_mae,
  ngce_rce,
)
from jnl.losses._complementary import (
  complementary_risks,
  decode_complementary,
  discriminative,
  mcl_exp,
  mcl_log,
  mcl_mae,
  order_preserving,
  pairwise_comparison,
  scarce,
  scl_exp,
)
from jnl.losses._correction import (
  backward,
  forward,
  importance_reweight,
  t_revision,
)
from jnl.losses._coupled import (
  JENSEN_SHANNON,
  KULLBACK_LEIBLER,
  NEYMAN,
  PEARSON,
  REVERSE_KL,
  SQUARED_HELLINGER,
  TOTAL_VARIATION,
  Divergence,
  cores2,
  cores2_sieve,
  dmi,
  f_divergence,
  mean_entropy_gap,
  peer,
  prior_mean_kl,
)
from jnl.losses._cross_entropy import (
  bootstrap_hard,
  bootstrap_soft,
  ce,
  clip_logits,
  dynamic_bootstrap,
  gls,
  label_smoothing,
  mixup,
  negative_learning,
)
from jnl.losses._divergences import (
  anorm,
  bi_tempered,
  gjs,
  gjs_of_mean,
  js,
  tempered_log_softmax,
)
from jnl.losses._imbalance import (
  adjust_logits,
  class_weights,
  ldam_margins,
  subtract_margins,
)
from jnl.losses._normalized import (
  focal,
  nce,
  nfl,
  ngce,
  nmae,
  nnce,
  nnfl,
  nrce,
)
from jnl.losses._partial import (
  cc,
  lws,
  lws_confidence,
  proden,
  proden_confidence,
  rcr_confidence,
  rule_out,
  uniform_candidates,
)
from jnl.losses._positive_unlabeled import (
  logistic_loss,
  mixup_log_consistency,
  nnpu,
  pu_mlc,
  pu_mlc_temperature,
  pu_risks,
  sigmoid_loss,
  upu,
  vpu,
)
from jnl.losses._proportions import (
  count_nll,
  count_nll_joint,
  count_nll_one_versus_rest,
  dllp,
  dllp_l1,
  dllp_squared,
  dsq,
  easy_llp,
  easy_llp_sampled,
  gen_bags,
  similarity_smoothness,
  transport,
  transport_labels,
)
from jnl.losses._regularizers import (
  elr_penalty,
  elr_plus_labels,
  elr_targets,
  entropy,
  kl_consistency,
  sop,
  sop_probs,
  symmetric_consistency,
  vat,
)
from jnl.losses._risks import abs_risks, ascend_risks, clip_risks
from jnl.losses._robust import (
  ael,
  agce,
  aul,
  gce,
  mae,
  rce,
  sce,
  taylor_ce,
  truncated_gce,
  truncated_gce_weights,
)

__all__ = [
  'JENSEN_SHANNON',
  'KULLBACK_LEIBLER',
  'NEYMAN',
  'PEARSON',
  'REVERSE_KL',
  'SQUARED_HELLINGER',
  'TOTAL_VARIATION',
  'Divergence',
  'abs_risks',
  'adjust_logits',
  'ael',
  'agce',
  'anl_ce',
  'anl_fl',
  'anorm',
  'ascend_risks',
  'aul',
  'backward',
  'bi_tempered',
  'bootstrap_hard',
  'bootstrap_soft',
  'cc',
  'ce',
  'class_weights',
  'clip_logits',
  'clip_risks',
  'complementary_risks',
  'cores2',
  'cores2_sieve',
  'count_nll',
  'count_nll_joint',
  'count_nll_one_versus_rest',
  'decode_complementary',
  'discriminative',
  'dllp',
  'dllp_l1',
  'dllp_squared',
  'dmi',
  'dsq',
  'dynamic_bootstrap',
  'easy_llp',
  'easy_llp_sampled',
  'elr_penalty',
  'elr_plus_labels',
  'elr_targets',
  'entropy',
  'f_divergence',
  'focal',
  'forward',
  'gce',
  'gen_bags',
  'gjs',
  'gjs_of_mean',
  'gls',
  'importance_reweight',
  'js',
  'kl_consistency',
  'label_smoothing',
  'ldam_margins',
  'logistic_loss',
  'lws',
  'lws_confidence',
  'mae',
  'mcl_exp',
  'mcl_log',
  'mcl_mae',
  'mean_entropy_gap',
  'mixup',
  'mixup_log_consistency',
  'nce',
  'nce_ael',
  'nce_agce',
  'nce_aul',
  'nce_mae',
  'nce_rce',
  'negative_learning',
  'nfl',
  'nfl_mae',
  'nfl_rce',
  'ngce',
  'ngce_mae',
  'ngce_rce',
  'nmae',
  'nnce',
  'nnfl',
  'nnpu',
  'nrce',
  'order_preserving',
  'pairwise_comparison',
  'peer',
  'prior_mean_kl',
  'proden',
  'proden_confidence',
  'pu_mlc',
  'pu_mlc_temperature',
  'pu_risks',
  'rce',
  'rcr_confidence',
  'rule_out',
  'scarce',
  'sce',
  'scl_exp',
  'sigmoid_loss',
  'similarity_smoothness',
  'sop',
  'sop_probs',
  'subtract_margins',
  'symmetric_consistency',
  't_revision',
  'taylor_ce',
  'tempered_log_softmax',
  'transport',
  'transport_labels',
  'truncated_gce',
  'truncated_gce_weights',
  'uniform_candidates',
  'upu',
  'vat',
  'vpu',
]


def __dir__() -> list[str]:
  return __all__
