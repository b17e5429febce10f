"Fixtures of the tests of kernels."
from opts import parallel as parallel
from opts import path as path
