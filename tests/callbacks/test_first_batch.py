"The look at the first batch comes and goes."
from small import Heard, learner


def test_the_look_is_there_for_the_first_batch_of_each_fit_only():
    seen = []
    def look(learn): seen.append('FirstBatchCB' in [type(cb).__name__ for cb in learn.cbs])
    learn = learner(Heard({'before_batch': look}))
    for _ in range(2): learn.fit(1)
    assert seen == ([True] + [False]*5)*2
