"Fixtures of the tests of optimizers."
from opts import eager as eager
from opts import parallel as parallel
from opts import path as path
