/* Each cell of the header's table of functions and contexts is what happens, and harms nothing. */
#define _GNU_SOURCE
#include "contract.h"

#define ROW_START " *   vu_"

static const struct contract_case *find_case(const char *function)
{
    const struct contract_case *found = contract_cases;

    while (found->function && strcmp(found->function, function) != 0)
        found++;
    if (!found->function) {
        fprintf(stderr, "%s has a row in the header and no case in contract-cases.c\n", function);
        abort();
    }
    return found;
}

static void play_callbacks(const struct contract_case *act, const char *cell)
{
    if (!(act->flags & ENDS)) {
        contract_play(act, CALLBACK, cell, CALLBACKS);
        return;
    }
    for (int only = 0; only < STOPPED; only++)
        contract_play(act, CALLBACK, cell, only);
}

static void play_row(const char *function, char cells[4][16])
{
    const struct contract_case *act = find_case(function);

    watchdog(50);
    contract_play(act, OWNER, cells[0], CALLBACKS);
    if (strcmp(cells[1], "idle") != 0)
        contract_play(act, ANY_RUNNING, cells[1], CALLBACKS);
    if (!(act->flags & WAITS) || strcmp(cells[1], "yes") != 0)
        contract_play(act, ANY_IDLE, cells[1], CALLBACKS);
    play_callbacks(act, cells[2]);
    contract_play(act, DETACHED, cells[3], CALLBACKS);
}

int main(int argc, char **argv)
{
    char line[256], function[64], cells[4][16];
    const struct contract_case *last = contract_cases;
    int rows = 0;
    FILE *header;

    check(argc == 2);
    header = fopen(argv[1], "r");
    check(header != NULL);
    while (fgets(line, sizeof(line), header)) {
        if (strncmp(line, ROW_START, strlen(ROW_START)) != 0 ||
            sscanf(line + 2, "%63s %15s %15s %15s %15s", function, cells[0], cells[1], cells[2],
                   cells[3]) != 5 ||
            strchr(function, '('))
            continue;
        play_row(function, cells);
        rows++;
    }
    fclose(header);
    while (last->function)
        last++;
    /* Each case was for one row. */
    check(rows == last - contract_cases);
    return 0;
}
