"""`make advise`: tune each arm equally on validation data, then confirm it with fresh seeds."""
