"""Search for hyperparameters of a distilled training, by Ultralytics' tuner."""
