"""A golden file seen in one precision; remembers which numbers were used.

A check is a generator of a `Case`: it yields once what is to be computed, `(
function, *arguments)`, is sent the results as numpy, and compares them. What
several files ask for is computed by one program, since compiling is what costs.
An entry `(check, together)` of a table has a way of its own to compute what its
check yields for several files, a list.
"""

import jax
import numpy as np

OTHER = {'f32': 'f64', 'f64': 'f32'}
DTYPES = {'f32': np.float32, 'f64': np.float64}

# Relative tolerances. The reference float32 numbers carry rounding of their
# own, most in gradients that are differences of nearly equal terms.
VALUE = {'f32': 1e-5, 'f64': 1e-9}
GRADIENT = {'f32': 1e-4, 'f64': 1e-9}
# Absolute: a few roundings of terms of size one, for results that cancel to 0.
ABSOLUTE = {'f32': 1e-6, 'f64': 1e-14}


def side_by_side(requests):
  """The results of several `(function, *arguments)`, by one program."""
  functions = [function for function, *_ in requests]
  arguments = [own for _, *own in requests]
  run = lambda every: [f(*own) for f, own in zip(functions, every, strict=True)]
  return jax.device_get(jax.jit(run)(arguments))


class Case:
  """The arrays of a file, cast to one precision."""

  def __init__(self, arrays, precision):
    self.arrays, self.precision = arrays, precision
    self.dtype = DTYPES[precision]
    self.inputs, self.results = set(), set()
    self.skipped = set()

  def precisions(self):
    """The precisions worth running, from the suffixes of the names.

    Results without a suffix are float64 unless one of them is stored in
    float32; results of float32 alone say nothing about float64.
    """
    suffixes = {name[-3:] for name in self.arrays} & set(DTYPES)
    if suffixes:
      return ['f32', 'f64'] if 'f64' in suffixes else ['f32']
    single = any(a.dtype == np.float32 for a in self.arrays.values())
    return ['f32'] if single else ['f32', 'f64']

  def __contains__(self, name):
    return name in self.arrays

  def __getitem__(self, name):
    """An input: floats in the precision of the case, integers as int32."""
    self.inputs.add(name)
    array = self.arrays[name]
    floating = np.issubdtype(array.dtype, np.floating)
    return np.asarray(array, self.dtype if floating else np.int32)

  def get(self, name):
    """An input or hyperparameter of a variant that the file may lack."""
    found = [key for key in (f'hp_{name}', name) if key in self.arrays]
    return self[found[0]] if found else None

  def hp(self, name):
    """A hyperparameter, as a Python number."""
    name = f'hp_{name}' if f'hp_{name}' in self.arrays else name
    self.inputs.add(name)
    return self.arrays[name].item()

  def expected(self, name):
    """A result: in the precision of the case, or else the one there is."""
    key = self._key(name)
    self.results.add(key)
    return self.arrays[key]

  def has(self, name):
    """Whether the file has this result, in any precision."""
    return self._key(name) in self.arrays

  def _key(self, name):
    names = (f'{name}_{p}' for p in (self.precision, OTHER[self.precision]))
    return next((key for key in names if key in self.arrays), name)

  def skip(self, *names):
    """Numbers that are not compared; the caller says why."""
    for name in names:
      self.skipped |= {k for k in self.arrays if k.startswith(name)}

  def unread(self):
    """Names of arrays that were not used, other precisions aside."""
    other = {
      name
      for name in self.arrays
      if name.endswith(OTHER[self.precision])
      and name[:-3] + self.precision in self.arrays
    }
    used = self.inputs | self.results | self.skipped
    return sorted(set(self.arrays) - other - used)

  # Other cases may lack a variant: a number that a file does not have is not
  # compared. That none which it has is left out, `unread` says.

  def value(self, actual, name, scale=1.0):
    """Compares values; `scale` is the size of the terms that cancel in them."""
    self._compare(actual, name, VALUE, scale)

  def gradient(self, actual, name, scale=1.0):
    """Compares gradients."""
    self._compare(actual, name, GRADIENT, scale)

  def close(self, actual, name, *, rtol=1e-7, atol=0.0):
    """Compares what has tolerances of its own, in whatever precision it is."""
    if self.has(name):
      np.testing.assert_allclose(
        actual, self.expected(name), rtol, atol, err_msg=self._title(name)
      )

  def equal(self, actual, name):
    """Compares what is exact."""
    if self.has(name):
      np.testing.assert_array_equal(
        actual, self.expected(name), err_msg=self._title(name)
      )

  def _title(self, name):
    return f'{name} ({self.precision})'

  def _compare(self, actual, name, tolerance, scale):
    if not self.has(name):
      return
    actual = np.asarray(actual)
    assert actual.dtype == self.dtype, f'{name} is {actual.dtype}'
    np.testing.assert_allclose(
      actual,
      self.expected(name),
      rtol=tolerance[self.precision],
      atol=ABSOLUTE[self.precision] * scale,
      err_msg=self._title(name),
    )
