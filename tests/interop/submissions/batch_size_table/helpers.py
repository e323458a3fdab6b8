def mean(losses, all_reduce):
    total, count = losses["summed"], losses["n_valid_examples"]
    if all_reduce is not None:
        total, count = all_reduce(total), all_reduce(count)
    return total / count
