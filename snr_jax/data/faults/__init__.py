"""What is wrong with files. `inspect` reads one sample whole; `look` reads the headers of a whole
split before work begins; `survey`, for the doctor, inspects every sample. `doubts` says what may
not be meant.
"""
