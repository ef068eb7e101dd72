/* A generated policy as a WebAssembly module without imports: fixed places for numbers, and functions to say where. */
#define LIMBECK_IMPLEMENTATION
#include "policy.h"
#include <stddef.h>
#include "string.h"

#define EXPORT(name) __attribute__((export_name(name)))

static limbeck_state state;
static float obs[LIMBECK_OBS];
static float params[LIMBECK_PARAMS];
static limbeck_action action[LIMBECK_ACTIONS];

EXPORT("obs") float *place_of_obs(void) { return obs; }
EXPORT("params") float *place_of_params(void) { return params; }
EXPORT("action") limbeck_action *place_of_action(void) { return action; }
EXPORT("state") limbeck_state *place_of_state(void) { return &state; }

EXPORT("obs_size") int obs_size(void) { return LIMBECK_OBS; }
EXPORT("params_size") int params_size(void) { return LIMBECK_PARAMS; }
EXPORT("action_size") int action_size(void) { return LIMBECK_ACTIONS; }
EXPORT("action_is_whole") int action_is_whole(void) { return (limbeck_action)0.5f == 0; }

/* bytes of the state that a policy carries from step to step; behind them lie counters and room to work in */
EXPORT("state_size") int state_size(void) { return (int)offsetof(limbeck_state, steps); }

/* 0: observations are not guarded, 1: against numbers that are not finite, 2: and against what training never saw */
EXPORT("guard") int guard(void) { return LIMBECK_GUARD; }
EXPORT("steps") int steps(void) { return (int)state.steps; }
EXPORT("strange") int strange(void) { return (int)state.strange; }
EXPORT("outside") int outside(void) { return (int)limbeck_outside(obs); }

/* before the first observation of every episode */
EXPORT("reset") void reset(void) { limbeck_reset(&state); }

/* obs in; params and the executed action out */
EXPORT("step") void step(void) { limbeck_step(&state, obs, params, action); }

/* volatile: or else the compiler would see memcpy and memset in these loops and call them */
void *memcpy(void *to, const void *from, size_t bytes)
{
    volatile unsigned char *t = to;
    const unsigned char *f = from;
    while (bytes--)
        *t++ = *f++;
    return to;
}

void *memset(void *to, int value, size_t bytes)
{
    volatile unsigned char *t = to;
    while (bytes--)
        *t++ = (unsigned char)value;
    return to;
}
