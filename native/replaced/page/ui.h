// llama-server's web page, from files: the folder `ui` beside the one that this library is in, if there is one.
//
// llama.cpp compiles the page into the server. Here vendor/page.py makes it, where there is npm, and the server is built
// the same with or without. llama-server's own --path for files would ask for an API key before the page can ask for it.
#pragma once

#include <dlfcn.h>

#include <deque>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>

#define LLAMA_UI_HAS_ASSETS 1 // else llama-server has no code to serve them

struct llama_ui_asset {
    std::string name;
    std::string content; // compressed by gzip
    std::string etag;
    std::string type;
    const char * data = nullptr;
    std::size_t size = 0;
};

inline bool llama_ui_use_gzip() { return true; }

namespace moebind {

// The files that files.tsv lists, a line each: name, type and hash, with tabs between.
inline std::deque<llama_ui_asset> page_beside(const std::string & library) {
    std::deque<llama_ui_asset> found;
    const std::string folder = library.substr(0, library.rfind('/') + 1) + "../ui/";
    std::ifstream list(folder + "files.tsv");
    for (std::string line; std::getline(list, line);) {
        llama_ui_asset asset;
        std::istringstream columns(line);
        std::getline(columns, asset.name, '\t');
        std::getline(columns, asset.type, '\t');
        std::getline(columns, asset.etag);
        asset.etag = '"' + asset.etag + '"';
        std::ifstream file(folder + asset.name + ".gz", std::ios::binary);
        if (!file) {
            continue;
        }
        asset.content.assign(std::istreambuf_iterator<char>(file), {});
        found.push_back(std::move(asset));
        found.back().data = found.back().content.data(); // after the move: short ones lie in the object
        found.back().size = found.back().content.size();
    }
    return found;
}

} // namespace moebind

inline const std::deque<llama_ui_asset> & llama_ui_get_assets() {
    static const std::deque<llama_ui_asset> page = [] {
        Dl_info here;
        const void * function = reinterpret_cast<const void *>(&llama_ui_get_assets);
        return dladdr(function, &here) != 0 ? moebind::page_beside(here.dli_fname) : std::deque<llama_ui_asset>();
    }();
    return page;
}

inline const llama_ui_asset * llama_ui_find_asset(const std::string & name) {
    for (const llama_ui_asset & asset : llama_ui_get_assets()) {
        if (asset.name == name) {
            return &asset;
        }
    }
    return nullptr;
}
