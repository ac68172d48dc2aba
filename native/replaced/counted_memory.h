// What ggml-base, with our counting in it (vendor/patches/counted-memory.patch), offers the extension.
#pragma once

// Whether what this thread allocates of backends' buffers is only counted from now on; what held before.
extern "C" __attribute__((visibility("default"))) bool moebind_count_only(bool on);

// Counts for as long as it is there.
struct moebind_counting {
    bool before = moebind_count_only(true);
    ~moebind_counting() { moebind_count_only(before); }
};

// Whether the graphs that this thread makes are left as they were made, and not split over the devices; what held before.
extern "C" __attribute__((visibility("default"))) bool moebind_leave_unsplit(bool on);

// Leaves them so for as long as it is there.
struct moebind_unsplit {
    bool before = moebind_leave_unsplit(true);
    ~moebind_unsplit() { moebind_leave_unsplit(before); }
};
