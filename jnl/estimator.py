"""An estimator for scikit-learn: `fit(X, y)` where some of `y` are wrong.

For tables that fit in memory, and for whoever knows scikit-learn: pipelines,
cross-validation, pickles. Inside, it is `train.fit` with a method of
`jnl.methods`, which has all that is not offered here.
"""

from collections.abc import Callable
import functools
from typing import Any, Self
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
  _check_sample_weight,
  check_array,
  check_is_fitted,
  check_X_y,
  validate_data,
)

from jnl import data, methods, nets
from jnl.base import Method, Model, check, check_name, data_shards
from jnl.data import augment
from jnl.train import fit

ROWS = 4096
"""At the most, of which the network is asked at once."""
VIEW_NOISE = 0.1
"""Of the second view, in deviations of each column."""


class NoisyLabelClassifier(ClassifierMixin, BaseEstimator):
  """A network that is trained on labels of which some are wrong.

  >>> from sklearn.datasets import make_blobs
  >>> from sklearn.model_selection import cross_val_predict
  >>> from sklearn.pipeline import make_pipeline
  >>> from sklearn.preprocessing import StandardScaler
  >>> X, y = make_blobs(300, centers=3, random_state=0)
  >>> noisy = np.where(np.arange(300) % 5 == 0, (y + 1) % 3, y)
  >>> model = make_pipeline(
  ...   StandardScaler(), NoisyLabelClassifier('gce', epochs=20, random_state=0)
  ... )
  >>> model.fit(X, noisy).score(X, y) > 0.9
  True
  >>> cross_val_predict(model, X, noisy, cv=2, method='predict_proba').shape
  (300, 3)

  Features are not scaled here: put a scaler before it. The columns of a
  DataFrame are numbers or categories (`astype('category')`).

  Args:
    method: how wrong labels are met: a name of `jnl.losses` (`'gce'`, `'ce'`,
      `'nce_rce'`, ...) or of `jnl.methods` (`'elr'`, `'divide_mix'`, ...), or a
      function `(model, num_examples, num_classes) -> Method`. What compares two
      views of an example (`'gjs'`, `'sop_plus'`) gets one with normal noise, a
      tenth of the deviation of each column.
    net: a name of `nets.build`, a `Model`, or a function `(num_classes, shape)
      -> Model`, of the shape of a row.
    epochs: passes over the data.
    batch_size: examples in a step; all, if there are fewer.
    learning_rate: of SGD with momentum .9 and gradients of norm at most 1.
    weight_decay: L2, added to the gradient.
    random_state: a seed, a `RandomState`, or None.
    **options: of the loss or the method: `q=.5` of `gce`, `lam=1.0` of `elr`,
      `rate=.3` of `co_teaching`. What methods do by epochs (a warm-up) is as
      published, for a hundred and more: with fewer, give shorter ones.

  Attributes:
    classes_: [c], the labels, sorted.
    n_features_in_: of a row.
    columns_: what the network sees: of a DataFrame also a column of zeros and
      ones for each category.
    feature_names_in_: of a DataFrame.
    n_iter_: epochs.
    loss_curve_: [epochs], the mean loss.
    flagged_: [n] bool, which labels the method holds for wrong; only of `elr`,
      `elr_plus`, `sop` and `sop_plus`.
  """

  columns_: tuple[str, ...]

  def __init__(
    self,
    method: str | Callable[[Model, int, int], Method] = 'gce',
    *,
    net: str | Model | Callable[[int, tuple], Model] = 'mlp',
    epochs: int = 100,
    batch_size: int = 100,
    learning_rate: float = 0.05,
    weight_decay: float = 5e-4,
    random_state: Any = None,
    **options: Any,
  ):
    self.method = method
    self.net = net
    self.epochs = epochs
    self.batch_size = batch_size
    self.learning_rate = learning_rate
    self.weight_decay = weight_decay
    self.random_state = random_state
    self.set_params(**options)

  def get_params(self, deep: bool = True) -> dict[str, Any]:
    """The arguments, options among them."""
    return super().get_params(deep) | self._options()

  def set_params(self, **params: Any) -> Self:
    """Sets arguments; what is none of them is an option of the method."""
    for name, value in params.items():
      check(
        name[:1] != '_' and name[-1:] != '_' and not hasattr(type(self), name),
        f'{name!r} cannot be an argument of {type(self).__name__}',
      )
      setattr(self, name, value)
    return self

  def _options(self) -> dict[str, Any]:
    """What was given beside the arguments; what is learned ends with `_`."""
    own = super().get_params(deep=False)
    return {
      name: value
      for name, value in vars(self).items()
      if name not in own and name[0] != '_' and name[-1] != '_'
    }

  def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
    """Trains on rows and their labels.

    Args:
      X: [n, d] numbers, an array or a DataFrame; [n, ...] if the network takes
        it.
      y: [n] labels of any type, at least two.
      sample_weight: [n] >= 0, by default 1. A row of weight 0 is not there.

    Returns:
      The estimator.

    Raises:
      ValueError: naming the argument, if something is not as it should be, or
        if training diverges.
    """
    self._check_arguments()
    X, y = self._read(X, y)
    check_classification_targets(y)
    self.classes_, labels = np.unique(y, return_inverse=True)
    c, n = len(self.classes_), len(X)
    check(
      c >= 2,
      f'y has one class, {self.classes_.tolist()[0]!r}: two are needed',
    )
    arrays = {'x': X, 'labels': labels.astype(np.int32)}
    if sample_weight is not None:
      weight = _check_sample_weight(sample_weight, X, dtype=np.float32)
      low = int(weight.argmin())
      check(
        weight[low] >= 0 and weight.max() > 0,
        f'sample_weight must not be negative, nor 0 everywhere, got '
        f'{weight[low]:g} in row {low}',
      )
      arrays['weight'] = weight
    b = min(self.batch_size, n)
    self._method = self._build(n, X.shape[1:], c, b)
    shards, devices = data_shards(n, b), jax.devices()
    used = max(d for d in range(1, len(devices) + 1) if shards % d == 0)
    seed = check_random_state(self.random_state).randint(2**31 - 1)
    fitted = fit(
      self._method,
      arrays,
      jax.random.key(seed),
      epochs=self.epochs,
      batch_size=b,
      devices=devices[:used],
      augment=_views(X) if self.method in methods.TWO_VIEWS else None,
    )
    self.state_ = jax.device_get(fitted.state)
    self.loss_curve_ = fitted.history['loss']
    self.n_iter_ = self.epochs
    self._built = n, X.shape[1:], c, b
    check(
      np.isfinite(self.loss_curve_).all(),
      f'training diverged: the loss is {self.loss_curve_[-1]}. Scale X, by a '
      f'StandardScaler for one, or lower learning_rate, '
      f'{self.learning_rate}',
    )
    flags = _flags(self.method, self.state_, labels)
    if flags is not None:
      self.flagged_ = np.asarray(flags)
    return self

  def predict_proba(self, X: Any) -> np.ndarray:
    """The probability [n, c] of each of `classes_`.

    Args:
      X: [n, d], as in `fit`.

    Returns:
      [n, c], rows that sum to 1.
    """
    check_is_fitted(self)
    X = self._read(X)
    parts = [self._of_rows(X[i : i + ROWS]) for i in range(0, len(X), ROWS)]
    return np.concatenate(parts)

  def predict(self, X: Any) -> np.ndarray:
    """The likeliest label [n].

    Args:
      X: [n, d], as in `fit`.

    Returns:
      [n], of `classes_`.
    """
    check_is_fitted(self)
    return self.classes_[self.predict_proba(X).argmax(-1)]

  def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
    """The share of labels that are predicted.

    Args:
      X: [n, d], as in `fit`.
      y: [n] labels; a label that `fit` has not seen counts as missed, and a
        warning names the first one.
      sample_weight: [n], by default 1.

    Returns:
      The accuracy.
    """
    check_is_fitted(self)
    labels, known = np.asarray(y).tolist(), set(self.classes_.tolist())
    unseen = [row for row, label in enumerate(labels) if label not in known]
    if unseen:
      warnings.warn(
        f'y holds {labels[unseen[0]]!r} in row {unseen[0]}, which fit has not '
        f'seen: {len(unseen)} rows cannot be right',
        stacklevel=2,
      )
    return super().score(X, y, sample_weight)

  def _read(self, X: Any, *y: Any) -> Any:
    """Rows [n, ...] float32, for `fit` also labels.

    The columns of a DataFrame are read as by `data.from_table`.
    """
    own: dict[str, Any] = {'dtype': np.float32, 'allow_nd': True}
    if hasattr(X, 'columns') and hasattr(X, 'iloc'):
      # Names are compared with those of fit before the frame is an array.
      validate_data(self, X, reset=bool(y), skip_check_array=True)
      like = None if y else data.Tabular(np.zeros(0), self.columns_)
      X, columns, *_ = data.from_table(X, like=like)
      if y:
        self.columns_ = columns
        return check_X_y(X, *y, **own)
      return check_array(X, **own)
    if y:
      X, labels = validate_data(self, X, *y, **own)
      self.columns_ = tuple(map(str, range(X.shape[1])))
      return X, labels
    X = validate_data(self, X, reset=False, **own)
    check(
      len(self.columns_) == X.shape[1],
      f'X must be a DataFrame, as in fit, for its categories: {self.columns_}',
    )
    return X

  def _of_rows(self, X: np.ndarray) -> np.ndarray:
    """Probabilities of some rows, as one of few sizes, each compiled once."""
    size = 1 << (len(X) - 1).bit_length()
    padded = np.zeros((size, *X.shape[1:]), X.dtype)
    padded[: len(X)] = X
    return np.asarray(_probabilities(self._predict, self.state_, padded))[
      : len(X)
    ]

  @property
  def _predict(self) -> Callable:
    if self.__dict__.get('_method') is None:  # it does not survive a pickle
      self._method = self._build(*self._built)
    return self._method.predict

  def __getstate__(self) -> dict[str, Any]:
    return {**super().__getstate__(), '_method': None}

  def _check_arguments(self) -> None:
    for name, least in (('epochs', 1), ('batch_size', 1)):
      value = getattr(self, name)
      check(value >= least, f'{name} must be at least {least}, got {value}')
    check(
      self.learning_rate > 0,
      f'learning_rate must be positive, got {self.learning_rate}',
    )
    if not callable(self.method):
      check_name('method', self.method, methods.known_names())

  def _build(self, n: int, shape: tuple, c: int, b: int) -> Method:
    """The method, the same object for the same arguments if it can be."""
    options = tuple(self._options().items())
    rest = self.net, self.learning_rate, self.weight_decay, n, shape, c, b
    try:
      hash((self.method, options, rest))
    except TypeError:  # an option is an array, say
      return _method_of.__wrapped__(self.method, options, *rest)
    return _method_of(self.method, options, *rest)


def _flags(method: Any, state: Any, labels: np.ndarray) -> jax.Array | None:
  """Which labels a method holds for wrong, if it can say so."""
  if method in ('elr', 'elr_plus'):
    return methods.mislabeled(state, jnp.asarray(labels))
  if method in ('sop', 'sop_plus'):
    return methods.learned_noise(state, len(labels)) > 0.5
  return None


def _views(X: np.ndarray) -> Callable:
  """Rows as they are, and with noise."""
  scale = VIEW_NOISE * X.std(axis=0)
  noisy = functools.partial(augment.gaussian_noise, scale=scale)
  return augment.views(augment.compose(), noisy)


@functools.lru_cache(maxsize=16)
def _method_of(
  method: Any,
  options: tuple,
  net: Any,
  learning_rate: float,
  weight_decay: float,
  n: int,
  shape: tuple,
  c: int,
  b: int,
) -> Method:
  """A method; `fit` knows it again, and compiles nothing a second time."""
  if isinstance(net, str):
    model = nets.from_linen(nets.build(net, c), shape)
  else:
    model = net if isinstance(net, Model) else net(c, shape)
  tx = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.add_decayed_weights(weight_decay),
    optax.sgd(learning_rate, momentum=0.9),
  )
  own = dict(options)
  if callable(method):
    return method(model, n, c, **own)
  x = np.broadcast_to(np.float32(0), (n, *shape))
  return methods.build(
    method, model, tx, x=x, num_classes=c, batch_size=b, **own
  )


@functools.partial(jax.jit, static_argnums=0)
def _probabilities(predict: Callable, state: Any, x: Any) -> jax.Array:
  return jax.nn.softmax(predict(state, x).logits.astype(jnp.float32))
