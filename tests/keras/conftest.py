import keras
import numpy as np
import pytest


@pytest.fixture(autouse=True)
def _the_same_names_and_initial_weights_in_each_run():
    keras.utils.clear_session()  # names are counted anew
    keras.utils.set_random_seed(0)


@pytest.fixture
def rng():
    return np.random.default_rng(0)
