"""`yolokd check`: is a training ready to start, will it pay, how long will it take?"""
